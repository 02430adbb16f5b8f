"""RecordOutcome, GetExperiment and what the other RPCs tell of a split: every status of the contract, against the real server."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
import pytest
from hone.inference.v1 import inference_pb2 as pb
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs

from services.inference.traffic.keeper import Keeper
from services.inference.traffic.metrics import TrafficCollector
from services.repository.store import Repository
from services.repository.traffic import Guardrails, Shadow
from tests.inference.conftest import Door, Open
from tests.inference.traffic.conftest import BROKEN_ABOVE, plan

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
SPLIT = plan(
    ("stable", 1, 1),
    ("bad", 4, 1),
    shadow=Shadow(version=4, share=1),
    guardrails=Guardrails(max_error_rate=0.05, min_calls=20),
    experiment="colours",
)


@pytest.fixture
async def door(versions: Repository, serve: Open) -> AsyncIterator[Door]:
    versions.set_traffic("m", "stable", SPLIT)
    async with serve(versions) as opened:
        yield opened


def predict(value: float, key: str = "", model: str = "m") -> pb.PredictRequest:
    x = np.full((1, 3), value, np.float32)
    tensor = pb.NamedTensor(name="x", tensor=pb.Tensor(datatype="FP32", shape=x.shape, data=x.tobytes()))
    return pb.PredictRequest(model=model, inputs=[tensor], options=pb.CallOptions(sticky_key=key))


def outcome(**changes: Any) -> pb.RecordOutcomeRequest:
    observation = {} if {"value", "success"} & changes.keys() else {"success": True}
    return pb.RecordOutcomeRequest(**{"model": "m", "variant": "bad", "name": "click", **observation, **changes})


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_an_answer_tells_channel_revision_and_arm(door: Door) -> None:
    told = [(await door.stub.Predict(predict(1, f"user-{number}"))).served for number in range(20)]
    assert {(served.channel, served.revision) for served in told} == {("stable", 1)}
    assert {(served.variant, served.version) for served in told} == {("stable", 1), ("bad", 4)}
    by_number = (await door.stub.Predict(predict(1, model="m@4"))).served
    assert (by_number.channel, by_number.variant, by_number.revision) == ("", "", 0)


async def test_an_experiment_is_told_whole(door: Door) -> None:
    for number in range(20):
        await door.stub.Predict(predict(1, f"user-{number}"))
    for arm, clicks in (("stable", 10), ("bad", 60)):
        await door.stub.RecordOutcome(outcome(variant=arm, success=True, count=clicks))
        await door.stub.RecordOutcome(outcome(variant=arm, success=False, count=100 - clicks))
        await door.stub.RecordOutcome(outcome(variant=arm, name="spent", value=2.5, count=3))
    found = await door.stub.GetExperiment(pb.GetExperimentRequest(model="m", minimum_effect=0.1))
    assert (found.model, found.channel, found.experiment, found.revision, found.replicas) == ("m", "stable", "colours", 1, 1)
    control, arm = found.arms
    assert (control.name, control.version, control.share, arm.name, arm.version, arm.share) == ("stable", 1, 0.5, "bad", 4, 0.5)
    assert control.calls + arm.calls == 20
    assert control.error_rate.low == control.error_rate.estimate == 0 < control.error_rate.high < 1
    assert 0 < control.p50_seconds <= control.p99_seconds < 60
    assert [(each.name, each.is_rate, each.count) for each in arm.outcomes] == [("click", True, 100), ("spent", False, 3)]
    assert not control.outcomes[0].HasField("comparison")
    compared = arm.outcomes[0].comparison
    assert compared.difference.estimate == pytest.approx(0.5)
    assert 0 < compared.difference.low < 0.5 < compared.difference.high
    assert compared.p_value < 1e-6
    assert compared.verdict.startswith("higher than the control: +50 points")
    assert compared.fixed_horizon.needed_per_arm == pytest.approx(265, abs=20)
    assert not compared.fixed_horizon.HasField("p_value")
    assert not arm.outcomes[1].HasField("comparison")  # three are too few
    assert found.shadow.version == 4
    strict = await door.stub.GetExperiment(pb.GetExperimentRequest(model="m", alpha=0.001))
    assert strict.arms[1].outcomes[0].comparison.difference.low < compared.difference.low
    assert not strict.arms[1].outcomes[0].comparison.HasField("fixed_horizon")


async def test_a_key_is_counted_once(door: Door) -> None:
    assert (await door.stub.RecordOutcome(outcome(idempotency_key="one"))).counted
    assert not (await door.stub.RecordOutcome(outcome(idempotency_key="one"))).counted
    assert (await door.stub.RecordOutcome(outcome())).counted
    found = await door.stub.GetExperiment(pb.GetExperimentRequest(model="m"))
    assert found.arms[1].outcomes[0].count == 2


async def fail_often(door: Door) -> None:
    """Calls that the bad arm fails at, and the control answers."""
    for number in range(80):
        if door.models.splits.get("m", "stable").choose(f"user-{number}") == "bad":
            code, _ = await refused(door.stub.Predict(predict(BROKEN_ABOVE, f"user-{number}")))
            assert code is grpc.StatusCode.INTERNAL
        else:
            await door.stub.Predict(predict(BROKEN_ABOVE, f"user-{number}"))


async def test_a_rollback_is_told_everywhere(door: Door) -> None:
    registry = CollectorRegistry()
    registry.register(TrafficCollector(door.models.splits))
    with capture_logs() as logged:  # which also spares the rendering of a hundred tracebacks
        await fail_often(door)
        assert b'hone_arm_taken_out{channel="stable",model="m",variant="bad"} 0.0' in generate_latest(registry)
        await Keeper(door.models.splits, door.models.state, 1).keep()
    (line,) = [line for line in logged if line["event"] == "an arm was taken out; its calls go to the control"]
    assert (line["log_level"], line["split"], line["arm"]) == ("warning", "m:stable revision 1", "bad")
    arm = (await door.stub.GetExperiment(pb.GetExperimentRequest(model="m"))).arms[1]
    assert (arm.share, arm.errors) == (0, arm.calls)
    assert arm.taken_out.startswith("error rate 100.00%")
    listed = {model.version: model for model in (await door.stub.ListModels(pb.ListModelsRequest())).models}
    assert listed[4].arms[0] == pb.ServedArm(channel="stable", arm="bad", revision=1, share=0, taken_out=arm.taken_out)
    assert listed[1].arms[0] == pb.ServedArm(channel="stable", arm="stable", revision=1, share=1)
    assert (list(listed[1].channels), list(listed[4].channels)) == (["stable"], [])
    scraped = generate_latest(registry)
    assert b'hone_arm_taken_out{channel="stable",model="m",variant="bad"} 1.0' in scraped
    assert b'hone_arm_share{channel="stable",model="m",variant="stable"} 1.0' in scraped
    assert b'hone_shadow_calls_total{channel="stable",model="m",result="compared"} 0.0' in scraped
    assert b"hone_shadow_agreement_bucket" in scraped


REFUSALS: list[tuple[grpc.StatusCode, str, Callable[[Any], Any]]] = [
    (INVALID, "model name", lambda stub: stub.RecordOutcome(outcome(model="m:stable"))),
    (INVALID, "channel", lambda stub: stub.RecordOutcome(outcome(channel="A"))),
    (NOT_FOUND, "the calls of other:stable are not split", lambda stub: stub.RecordOutcome(outcome(model="other"))),
    (NOT_FOUND, "the calls of m:canary are not split", lambda stub: stub.RecordOutcome(outcome(channel="canary"))),
    (NOT_FOUND, "variant", lambda stub: stub.RecordOutcome(outcome(variant="old"))),
    (grpc.StatusCode.FAILED_PRECONDITION, "revision: 7 is not", lambda stub: stub.RecordOutcome(outcome(revision=7))),
    (INVALID, "name", lambda stub: stub.RecordOutcome(outcome(name=""))),
    (INVALID, "name", lambda stub: stub.RecordOutcome(outcome(name="a b"))),
    (INVALID, "value", lambda stub: stub.RecordOutcome(outcome(value=float("nan")))),
    (INVALID, "value", lambda stub: stub.RecordOutcome(outcome(value=float("inf")))),
    (INVALID, "count", lambda stub: stub.RecordOutcome(outcome(count=-1))),
    (INVALID, "count", lambda stub: stub.RecordOutcome(outcome(count=1_000_001))),
    (INVALID, "idempotency_key", lambda stub: stub.RecordOutcome(outcome(idempotency_key="k" * 129))),
    (INVALID, "observation", lambda stub: stub.RecordOutcome(pb.RecordOutcomeRequest(model="m", variant="bad", name="click"))),
    (INVALID, "alpha", lambda stub: stub.GetExperiment(pb.GetExperimentRequest(model="m", alpha=0.9))),
    (INVALID, "power", lambda stub: stub.GetExperiment(pb.GetExperimentRequest(model="m", power=1))),
    (INVALID, "minimum_effect", lambda stub: stub.GetExperiment(pb.GetExperimentRequest(model="m", minimum_effect=0))),
    (NOT_FOUND, "the calls of other:stable", lambda stub: stub.GetExperiment(pb.GetExperimentRequest(model="other"))),
    (INVALID, "options.sticky_key", lambda stub: stub.Predict(predict(1, "k" * 257))),
]


async def test_a_refusal_has_its_code_and_its_field(door: Door) -> None:
    """In one test, since a door takes a second to open."""
    told = [(await refused(call(door.stub)), code, field) for code, field, call in REFUSALS]
    assert [found for found, code, field in told if found[0] is not code or not found[1].startswith(field)] == []


async def test_successes_and_values_are_not_mixed_and_names_are_bounded(door: Door) -> None:
    await door.stub.RecordOutcome(outcome())
    code, details = await refused(door.stub.RecordOutcome(outcome(variant="stable", value=3)))
    assert (code, details) == (INVALID, "observation: 'click' is recorded as successes")
    for number in range(31):
        await door.stub.RecordOutcome(outcome(name=f"n{number}"))
    code, details = await refused(door.stub.RecordOutcome(outcome(name="one-more")))
    assert (code, details.startswith("name: ")) == (INVALID, True)
