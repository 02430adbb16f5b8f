"""Goals that no search could meet: refused at the door, every fault at once, with the nearest goal that is one."""

import math
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hone.optimization.v1 import advisor_pb2 as pb
from hone.optimization.v1 import goals_pb2, jobs_pb2
from hone.specs import goal
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.faults import InvalidField
from services.optimization.goal_wire import economics_from, goal_from
from services.repository.manifest import Format
from services.repository.store import Origin
from tests.models import minilm_signature
from tests.optimization.test_job_service import refused

WEIGHTS_BYTES = 1_000_000
ECONOMICS: dict[str, Any] = {"instance_hour_price": 1.0, "peak_rows_per_second": 10.0}


@pytest.fixture
def _model(doors: Any) -> None:
    with doors.repository.staging() as staged:
        (staged / "config.json").write_text("{}")
        (staged / "model.safetensors").write_bytes(bytes(WEIGHTS_BYTES))
        doors.repository.seal(staged, "m", minilm_signature(), Origin())


async def told(doors: Any, wanted: goals_pb2.Goal, *, training: bool = False) -> str:
    """What the door says to a goal that it refuses."""
    spec = jobs_pb2.JobSpec(source="m@1", evaluation=jobs_pb2.Data(texts=["a", "b"]), goal=wanted)
    if training:
        spec.training.texts.append("c")
    code, details = await refused(doors.advisor.Recommend(pb.RecommendRequest(spec=spec)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert (await refused(doors.advisor.PlanRecommendation(pb.PlanRecommendationRequest(spec=spec)))) == (code, details)
    return details


@pytest.mark.usefixtures("_model")
@pytest.mark.parametrize(
    ("field", "wanted", "nearest"),
    [
        ("targets.max_loss", goal(max_loss=1.0), "0.1"),
        ("targets.max_loss", goal(max_loss=-0.01), "0"),
        ("targets.max_size_bytes", goal(max_size_bytes=WEIGHTS_BYTES // 10), f"{(WEIGHTS_BYTES + 2) // 8 + 1}"),
        ("targets.max_size_bytes", goal(max_size_bytes=0), f"{(WEIGHTS_BYTES + 2) // 8 + 1}"),
        ("targets.min_served_speedup", goal(min_served_speedup=0.2), "1"),
        ("targets.at_rows_per_second", goal(max_p99_ms=10, at_rows_per_second=50, traffic=goals_pb2.Traffic(rate=20)), "20"),
        ("economics.monthly_growth", goal(economics=goals_pb2.Economics(**ECONOMICS, monthly_growth=-2)), "-0.5"),
        ("economics.horizon_months", goal(economics=goals_pb2.Economics(**ECONOMICS, horizon_months=-1)), "1"),
        ("economics.hourly_rate", goal(economics=goals_pb2.Economics(**ECONOMICS, hourly_rate=-5)), "0"),
        ("economics.one_off_cost", goal(economics=goals_pb2.Economics(**ECONOMICS, one_off_cost=-5)), "0"),
        ("economics.utilization", goal(economics=goals_pb2.Economics(**ECONOMICS, utilization=1.5)), "1"),
        ("traffic.callers", goal(traffic=goals_pb2.Traffic(callers=5000)), "1024"),
        ("traffic.request_rows[1]", goal(traffic=goals_pb2.Traffic(request_rows=[1, 0])), "1"),
        ("traffic.gaps_s[0]", goal(traffic=goals_pb2.Traffic(gaps_s=[-1.0])), "0"),
    ],
)
async def test_a_goal_that_is_none_names_its_field_and_the_nearest(doors: Any, field: str, wanted: goals_pb2.Goal, nearest: str) -> None:
    details = await told(doors, wanted)
    assert details.startswith(f"spec.goal.{field}: ")
    assert details.endswith(f"nearest feasible: {nearest}")


@pytest.mark.usefixtures("_model")
@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("targets.max_p99_ms", goal(max_p99_ms=0)),
        ("targets.max_p99_ms", goal(max_p99_ms=-3)),
        ("economics.currency", goal(economics=goals_pb2.Economics(**ECONOMICS, currency="euro"))),
        ("economics.peak_rows_per_second", goal(economics=goals_pb2.Economics(instance_hour_price=1))),
        ("traffic", goal(traffic=goals_pb2.Traffic(texts=["a"], token_lengths=[3]))),
    ],
)
async def test_a_goal_without_a_nearest_names_its_field(doors: Any, field: str, wanted: goals_pb2.Goal) -> None:
    assert (await told(doors, wanted)).startswith(f"spec.goal.{field}: ")


@pytest.mark.usefixtures("_model")
async def test_faults_of_every_part_are_told_at_once(doors: Any) -> None:
    wanted = goal(
        min_speedup=0.5,
        max_loss=2.0,
        traffic=goals_pb2.Traffic(rate=-1, repeat_share=1),
        economics=goals_pb2.Economics(instance_hour_price=-1, peak_rows_per_second=math.nan, monthly_growth=-2),
    )
    details = await told(doors, wanted)
    named = ("targets.min_speedup", "targets.max_loss", "traffic.rate", "traffic.repeat_share")
    for field in (*named, "economics.instance_hour_price", "economics.peak_rows_per_second", "economics.monthly_growth"):
        assert details.count(f"spec.goal.{field}: ") == 1


@pytest.mark.usefixtures("_model")
async def test_the_nearest_size_is_taken(doors: Any) -> None:
    details = await told(doors, goal(max_size_bytes=1))
    nearest = int(details.rpartition(" ")[2])
    spec = jobs_pb2.JobSpec(source="m@1", evaluation=jobs_pb2.Data(texts=["a", "b"]), goal=goal(max_size_bytes=nearest))
    assert (await doors.advisor.Recommend(pb.RecommendRequest(spec=spec))).job.id


async def test_a_model_that_no_recipe_takes_is_refused(doors: Any) -> None:
    with doors.repository.staging() as staged:
        (staged / "model.pt").write_bytes(b"x")
        doors.repository.seal(staged, "m", minilm_signature().model_copy(update={"format": Format.TORCHSCRIPT}), Origin())
    assert (await told(doors, goal())).startswith("spec.source: a search begins with a model in the format huggingface or onnx")


def floats(of: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a message holds numbers that may be NaN, those of the messages in it included."""
    for field in of.fields:
        if field.message_type is not None:
            yield from floats(field.message_type, (*path, field.name))
        elif field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            yield (*path, field.name)


PATHS = sorted(floats(goals_pb2.Goal.DESCRIPTOR))


def put(message: Message, path: tuple[str, ...], value: float) -> str:
    """Sets it; answers the path as a refusal tells it."""
    *outer, name = path
    inner: Any = message
    for each in outer:
        inner = getattr(inner, each)
    if message.DESCRIPTOR is not None and inner.DESCRIPTOR.fields_by_name[name].is_repeated:
        getattr(inner, name).append(value)
        return f"{'.'.join(path)}[0]"
    setattr(inner, name, value)
    return ".".join(path)


def test_every_message_of_a_goal_has_numbers() -> None:
    assert {path[0] for path in PATHS} == {"targets", "traffic", "economics"}


@given(st.sets(st.sampled_from(PATHS), min_size=1), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_is_refused_wherever_it_is(paths: set[tuple[str, ...]], value: float) -> None:
    message = goals_pb2.Goal()
    named = [put(message, path, value) for path in paths]
    with pytest.raises(InvalidField) as caught:
        goal_from(message)
    for name in named:
        assert f"spec.goal.{name}: " in str(caught.value)


@given(st.sampled_from([path for path in PATHS if path[0] == "economics"]), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_is_no_price(path: tuple[str, ...], value: float) -> None:
    message = goals_pb2.Economics(**ECONOMICS)
    setattr(message, path[1], value)
    with pytest.raises(InvalidField, match=path[1]):
        economics_from(message, "economics")
