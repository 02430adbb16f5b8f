"""Calls that are split among real versions: who answers, what is told, when a new split is switched to."""

import asyncio
from collections import Counter

import pytest

from services.backends import BackendError
from services.chassis.faults import InvalidField, NotFound, WrongState
from services.inference.calls import Options
from services.inference.served import State
from services.repository.store import Repository
from services.repository.traffic import Shadow
from tests.inference.test_served_models import flipped_byte
from tests.inference.traffic.conftest import BROKEN_ABOVE, Start, plan

HALVES = plan(("stable", 1, 1), ("new", 3, 1))
KEYS = [f"user-{number}" for number in range(40)]


async def test_answers_tell_their_arm_and_keys_keep_theirs(versions: Repository, start: Start) -> None:
    revision = versions.set_traffic("m", "stable", HALVES).revision
    async with start() as service:
        seen = {key: (await service.call(key=key)).served for key in KEYS}
        again = {key: (await service.call(key=key)).served for key in KEYS}
    assert {key: served.variant for key, served in seen.items()} == {key: served.variant for key, served in again.items()}
    assert {(served.variant, served.version) for served in seen.values()} == {("stable", 1), ("new", 3)}
    assert {(served.channel, served.revision) for served in seen.values()} == {("stable", revision)}


async def test_each_arm_answers_with_its_own_version(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", HALVES)
    async with start() as service:
        for key in KEYS:
            result = await service.call(5, key)
            assert result.outputs["y"][0, 0] == {"stable": 10, "new": 15}[result.served.variant]


async def test_a_version_by_its_number_and_another_channel_go_past_the_split(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", HALVES)
    versions.set_channel("m", "canary", 2)
    async with start() as service:
        for _ in range(20):
            assert (await service.call(reference="m@3")).served.variant == ""
            assert (await service.call(reference="m:canary")).served.variant == "canary"
        assert service.models.splits.get("m", "stable").total().arms == {}


async def test_calls_and_failures_are_counted_where_they_were_answered(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", plan(("stable", 1, 1), ("new", 4, 1)))
    async with start() as service:
        answered = Counter([(await service.call(key=key)).served.variant for key in KEYS])
        failed = 0
        for key in KEYS:
            try:
                await service.call(BROKEN_ABOVE, key)
            except BackendError:
                failed += 1
        total = service.models.splits.get("m", "stable").total()
    assert failed == answered["new"]
    assert (total.arm("new").calls, total.arm("new").errors) == (2 * answered["new"], failed)
    assert (total.arm("stable").calls, total.arm("stable").errors) == (2 * answered["stable"], 0)
    assert total.arm("new").latencies.count == answered["new"]


async def test_what_a_caller_did_wrong_is_not_the_arms_failure(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", HALVES)
    async with start() as service:
        with pytest.raises(InvalidField):
            await service.core.run_tensors("m", {}, (), Options())
        with pytest.raises(InvalidField, match=r"options\.sticky_key: has 257 characters"):
            await service.call(key="k" * 257)
        assert service.models.splits.get("m", "stable").total().arms == {}


async def test_a_new_split_is_switched_to_when_its_versions_serve(versions: Repository, start: Start) -> None:
    async with start() as service:
        with pytest.raises(NotFound, match="not split on this replica"):
            service.models.splits.get("m", "stable")
        assert (await service.call()).served.variant == "stable"
        versions.set_traffic("m", "stable", plan(("control", 1, 1), ("new", 3, 1000)))
        await service.look()
        assert {(await service.call(key=key)).served.variant for key in KEYS} >= {"new"}
        versions.set_traffic("m", "stable", plan(("control", 1, 1000), ("other", 2, 1)))
        await service.look()
        assert {(await service.call(key=key)).served.variant for key in KEYS} <= {"control", "other"}
        await service.look()
        assert {served.manifest.version for served in service.models.all() if served.state is State.READY} == {1, 2}


async def test_an_arm_that_cannot_be_loaded_keeps_the_old_split_and_says_why(versions: Repository, start: Start) -> None:
    old = versions.set_traffic("m", "stable", HALVES)
    async with start() as service:
        with flipped_byte(versions.folder("m", 2) / "model.onnx"):
            new = versions.set_traffic("m", "stable", plan(("stable", 1, 1), ("broken", 2, 1)))
            await service.look()
        assert {(await service.call(key=key)).served.revision for key in KEYS} == {old.revision}
        pending = service.models.splits.pending("m", "stable")
        assert pending is not None
        assert pending.revision == new.revision
        assert "m@2 is failed" in pending.reason
        assert "model.onnx has digest" in pending.reason
        await service.models.load("m@2")  # mended, and asked for by hand
        await service.look()
        assert {(await service.call(key=key)).served.revision for key in KEYS} == {new.revision}
        assert service.models.splits.pending("m", "stable") is None


async def test_before_the_first_split_can_be_served_the_channel_answers(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", plan(("stable", 1, 1), ("broken", 2, 1000)))
    with flipped_byte(versions.folder("m", 2) / "model.onnx"):
        async with start() as service:
            assert {(await service.call(key=key)).served.version for key in KEYS} == {1}
            with pytest.raises(NotFound, match=r"not split on this replica yet: m@2 is failed"):
                service.models.splits.get("m", "stable")


async def test_a_promotion_ends_the_split_without_a_call_lost(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", HALVES)
    async with start() as service:
        promoted = asyncio.Event()

        async def call_on(key: str) -> int:
            while not promoted.is_set():
                await service.call(key=key)
            return (await service.call(key=key)).served.version

        callers = [asyncio.create_task(call_on(key)) for key in KEYS[:4]]
        versions.promote_arm("m", "stable", "new")
        await service.look()
        promoted.set()
        assert await asyncio.gather(*callers) == [3] * 4
        served = (await service.call()).served
        assert (served.variant, served.channel, served.revision) == ("stable", "stable", 0)
        with pytest.raises(NotFound):
            service.models.splits.get("m", "stable")


async def test_a_version_of_a_split_is_not_unloaded(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", plan(("stable", 1, 1), ("new", 3, 1), shadow=Shadow(version=2, share=1)))
    async with start() as service:
        for version in (2, 3):
            with pytest.raises(WrongState, match=f"the traffic of channel stable uses m@{version}"):
                service.models.unload(f"m@{version}")
