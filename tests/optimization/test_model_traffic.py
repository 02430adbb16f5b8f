"""ModelService's traffic: every RPC and every code of its contract."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from hone.repository.v1 import models_pb2 as pb

from services.repository.manifest import Format, Signature, Task, TensorSpec
from services.repository.store import Origin

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
ARMS = [pb.Arm(name="stable", version=1, weight=90), pb.Arm(name="new", version=2, weight=10)]


@pytest.fixture
def two(doors: Any) -> Any:
    """A model `m` of three versions, `stable` at the first; the third answers something else."""
    for width in (3, 3, 4):
        spec = TensorSpec(name="x", datatype="FP32", shape=(-1, width))
        with doors.repository.staging() as staged:
            (staged / "model.onnx").write_bytes(b"weights")
            signature = Signature(task=Task.TENSOR, format=Format.ONNX, inputs=(spec,), outputs=(spec,))
            doors.repository.seal(staged, "m", signature, Origin())
    doors.repository.set_channel("m", "stable", 1)
    return doors


def setting(traffic: pb.Traffic, **more: Any) -> pb.SetTrafficRequest:
    return pb.SetTrafficRequest(**{"name": "m", "traffic": traffic, **more})


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_a_split_is_set_told_and_cleared(two: Any) -> None:
    full = pb.Traffic(
        experiment="colours",
        arms=ARMS,
        shadow=pb.Shadow(version=2, share=0.25),
        guardrails=pb.Guardrails(max_error_rate=0.01, min_agreement=0.5, min_calls=50),
    )
    made = (await two.models.SetTraffic(setting(full))).traffic
    assert made == pb.Traffic(**{**{field.name: value for field, value in full.ListFields()}, "revision": 1})
    assert not made.guardrails.HasField("max_p99_ratio")
    assert (await two.models.SetTraffic(setting(full))).traffic == made
    assert (await two.models.GetTraffic(pb.GetTrafficRequest(name="m", channel="stable"))).traffic == made
    await two.models.ClearTraffic(pb.ClearTrafficRequest(name="m"))
    assert (await two.models.GetTraffic(pb.GetTrafficRequest(name="m"))).traffic == pb.Traffic()


async def test_an_arm_is_promoted_and_the_split_ends(two: Any) -> None:
    await two.models.SetTraffic(setting(pb.Traffic(arms=ARMS)))
    promoted = (await two.models.PromoteArm(pb.PromoteArmRequest(name="m", arm="new"))).model
    assert (promoted.version, list(promoted.channels)) == (2, ["stable"])
    assert (await two.models.GetTraffic(pb.GetTrafficRequest(name="m"))).traffic == pb.Traffic()
    assert (await two.models.RollBack(pb.RollBackRequest(name="m", channel="stable"))).model.version == 1


async def test_a_version_that_a_split_uses_is_not_deleted(two: Any) -> None:
    await two.models.SetTraffic(setting(pb.Traffic(arms=ARMS)))
    code, details = await refused(two.models.DeleteVersion(pb.DeleteVersionRequest(name="m", version=2)))
    assert (code, "traffic of channel stable" in details) == (PRECONDITION, True)


async def test_the_default_of_calls_before_a_judgement_is_told(two: Any) -> None:
    made = (await two.models.SetTraffic(setting(pb.Traffic(arms=ARMS)))).traffic
    assert made.guardrails.min_calls == 100


async def test_a_revision_read_before_another_change_is_stale(two: Any) -> None:
    read = (await two.models.SetTraffic(setting(pb.Traffic(arms=ARMS)))).traffic
    changed = pb.Traffic(arms=ARMS, experiment="other")
    await two.models.SetTraffic(setting(changed))
    read.arms[1].weight = 20
    code, details = await refused(two.models.SetTraffic(setting(read)))
    assert (code, details) == (PRECONDITION, "traffic: revision 1 was read, 2 is the last; read it again")


def unknown_field(message: Any) -> bytes:
    """Its bytes with a field 99 that only a newer client knows."""
    return bytes(message.SerializeToString()) + b"\x98\x06\x01"


@pytest.mark.parametrize(
    ("traffic", "path"),
    [
        (pb.Traffic.FromString(unknown_field(pb.Traffic(arms=ARMS))), "traffic: "),
        (pb.Traffic(arms=ARMS, guardrails=pb.Guardrails.FromString(unknown_field(pb.Guardrails()))), "traffic.guardrails: "),
        (pb.Traffic(arms=[ARMS[0], pb.Arm.FromString(unknown_field(ARMS[1]))]), "traffic.arms[1]: "),
    ],
)
async def test_a_field_that_only_a_newer_client_knows_is_refused(two: Any, traffic: pb.Traffic, path: str) -> None:
    code, details = await refused(two.models.SetTraffic(setting(traffic)))
    assert (code, details) == (INVALID, f"{path}this server knows no field 99 of it")


def arms(**changes: Any) -> pb.Traffic:
    return pb.Traffic(arms=[ARMS[0], pb.Arm(**{"name": "new", "version": 2, "weight": 10, **changes})])


REFUSALS: list[tuple[grpc.StatusCode, str, Callable[[Any], Any]]] = [
    (INVALID, "name", lambda m: m.SetTraffic(setting(pb.Traffic(arms=ARMS), name=".."))),
    (INVALID, "channel", lambda m: m.SetTraffic(setting(pb.Traffic(arms=ARMS), channel="A"))),
    (INVALID, "traffic.arms", lambda m: m.SetTraffic(setting(pb.Traffic()))),
    (INVALID, "traffic.arms[1].name", lambda m: m.SetTraffic(setting(arms(name="A b")))),
    (INVALID, "traffic.arms[1].name", lambda m: m.SetTraffic(setting(arms(name="stable")))),
    (INVALID, "traffic.arms[1].version", lambda m: m.SetTraffic(setting(arms(version=0)))),
    (INVALID, "traffic.arms[1].version", lambda m: m.SetTraffic(setting(arms(version=3)))),
    (INVALID, "traffic.arms[1].weight", lambda m: m.SetTraffic(setting(arms(weight=-1)))),
    (INVALID, "traffic.arms[0].version", lambda m: m.SetTraffic(setting(pb.Traffic(arms=ARMS[::-1])))),
    (INVALID, "traffic.shadow.share", lambda m: m.SetTraffic(setting(pb.Traffic(arms=ARMS, shadow=pb.Shadow(version=2, share=2))))),
    (
        INVALID,
        "traffic.guardrails.max_error_rate",
        lambda m: m.SetTraffic(setting(pb.Traffic(arms=ARMS, guardrails=pb.Guardrails(max_error_rate=1)))),
    ),
    (
        INVALID,
        "traffic.guardrails.min_agreement",
        lambda m: m.SetTraffic(setting(pb.Traffic(arms=ARMS, guardrails=pb.Guardrails(min_agreement=0.9)))),
    ),
    (NOT_FOUND, "no version 9", lambda m: m.SetTraffic(setting(arms(version=9)))),
    (NOT_FOUND, "model 'm' has no channel", lambda m: m.SetTraffic(setting(pb.Traffic(arms=ARMS), channel="canary"))),
    (INVALID, "name", lambda m: m.GetTraffic(pb.GetTrafficRequest())),
    (NOT_FOUND, "no model", lambda m: m.GetTraffic(pb.GetTrafficRequest(name="nobody"))),
    (NOT_FOUND, "model 'm' has no channel", lambda m: m.GetTraffic(pb.GetTrafficRequest(name="m", channel="canary"))),
    (INVALID, "name", lambda m: m.ClearTraffic(pb.ClearTrafficRequest(name="a/b"))),
    (NOT_FOUND, "no model", lambda m: m.ClearTraffic(pb.ClearTrafficRequest(name="nobody"))),
    (NOT_FOUND, "the calls of m:stable are not split", lambda m: m.PromoteArm(pb.PromoteArmRequest(name="m", arm="new"))),
]


async def test_a_refusal_has_its_code_and_its_field(two: Any) -> None:
    told = [(await refused(call(two.models)), code, field) for code, field, call in REFUSALS]
    assert [found for found, code, field in told if found[0] is not code or not found[1].startswith(field)] == []
