"""Guardrails that act: a bad arm goes by itself, on every replica and after every restart, and callers of the control notice nothing."""

from pathlib import Path

import pytest

from services.backends import BackendError
from services.chassis.faults import NotFound
from services.inference.traffic.live import LiveSplit, Observation
from services.repository.store import Repository
from services.repository.traffic import Guardrails, Plan, Shadow
from tests.inference.traffic.conftest import BROKEN_ABOVE, Service, Start, plan

GUARDED = plan(("stable", 1, 1), ("bad", 4, 1), guardrails=Guardrails(max_error_rate=0.05, min_calls=20))
KEYS = [f"user-{number}" for number in range(200)]


def live(service: Service) -> LiveSplit:
    return service.models.splits.get("m", "stable")


async def failures(service: Service, keys: list[str]) -> dict[str, int]:
    """Calls that failed, by the arm that each key had."""
    failed = {"stable": 0, "bad": 0}
    for key in keys:
        arm = live(service).choose(key)
        try:
            await service.call(BROKEN_ABOVE, key)
        except BackendError:
            failed[arm] += 1
    return failed


async def test_a_bad_arm_is_rolled_back_by_itself_and_stays_so_after_a_restart(versions: Repository, start: Start) -> None:
    """Version 1 answers what version 4 fails at: only keys of the bad arm see failures, and none after the rollback."""
    versions.set_traffic("m", "stable", GUARDED)
    async with start() as service:
        before = {key: live(service).choose(key) for key in KEYS}
        failed = await failures(service, KEYS)
        assert failed == {"stable": 0, "bad": sum(arm == "bad" for arm in before.values())}
        assert live(service).taken_out == {}  # not before it is judged
        await service.keeper.keep()
        assert "error rate 100.00%" in live(service).taken_out["bad"]
        assert await failures(service, KEYS) == {"stable": 0, "bad": 0}
        assert live(service).shares() == {"stable": 1, "bad": 0}
        calls = live(service).total().arm("stable").calls
    async with start() as restarted:  # a rollback is not tried out again by its callers
        assert "error rate 100.00%" in live(restarted).taken_out["bad"]
        assert await failures(restarted, KEYS) == {"stable": 0, "bad": 0}
        assert live(restarted).total().arm("stable").calls == calls + len(KEYS)


async def test_another_replica_follows_and_their_counts_add_up(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", GUARDED)
    async with start(replica="one") as one, start(replica="two") as two:
        await failures(one, KEYS[:100])
        await failures(two, KEYS[100:])
        await one.keeper.keep()
        await two.keeper.keep()
        await one.keeper.keep()
        assert live(one).taken_out == live(two).taken_out != {}
        assert live(one).total() == live(two).total()
        assert sum(arm.calls for arm in live(one).total().arms.values()) == len(KEYS)
        assert (live(one).replicas, live(two).replicas) == (1, 1)


async def test_processes_of_one_name_count_apart(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", GUARDED)
    async with start(replica="same") as one, start(replica="same") as two:
        for service in (one, two):
            for key in KEYS[:10]:
                await service.call(key=key)
            await service.keeper.keep()
        await one.keeper.keep()
        assert sum(arm.calls for arm in live(one).total().arms.values()) == 20


async def test_a_new_revision_begins_anew(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", GUARDED)
    async with start() as service:
        await failures(service, KEYS)
        await service.keeper.keep()
        assert live(service).taken_out
        versions.set_traffic("m", "stable", Plan(**{**GUARDED.model_dump(), "experiment": "again"}))
        await service.look()
        assert live(service).taken_out == {}
        assert live(service).total().arms == {}


async def test_outcomes_survive_a_restart(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", GUARDED)
    async with start() as service:
        assert live(service).record("bad", Observation("click", 1, True, 7))
        assert live(service).record("bad", Observation("spent", 2.5, False))
    async with start() as restarted:
        outcomes = live(restarted).total().arm("bad").outcomes
        assert (outcomes["click"].is_rate, outcomes["click"].moments.total) == (True, 7)
        assert (outcomes["spent"].is_rate, outcomes["spent"].moments.mean) == (False, 2.5)


async def test_a_state_folder_that_cannot_be_written_stops_no_call_and_no_guardrail(
    versions: Repository, start: Start, tmp_path: Path
) -> None:
    versions.set_traffic("m", "stable", GUARDED)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    async with start(state=blocked) as service:
        await failures(service, KEYS)
        await service.keeper.keep()
        await service.keeper.keep()
        assert "bad" in live(service).taken_out
        assert await failures(service, KEYS) == {"stable": 0, "bad": 0}


async def test_damaged_counts_are_as_if_they_were_not_there(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", GUARDED)
    async with start() as service:
        await failures(service, KEYS)
        await service.keeper.keep()
    counts, marker = ([*(versions.root.parent / "state").rglob(pattern)] for pattern in ("counts/*.json", "out/*.json"))
    for path in (*counts, *marker):
        path.write_bytes(b"{")
    async with start() as restarted:
        assert live(restarted).total().arms == {}
        assert live(restarted).taken_out == {"bad": "taken out by another replica"}  # the file's name says so


async def test_a_split_that_ended_has_its_last_counts_saved(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", GUARDED)
    async with start() as service:
        for key in KEYS[:10]:
            await service.call(key=key)
        versions.clear_traffic("m", "stable")
        await service.look()
        with pytest.raises(NotFound):
            live(service)
        await service.keeper.keep()
    saved = [*(versions.root.parent / "state").rglob("counts/*.json")]
    assert len(saved) == 1
    assert b'"calls":' in saved[0].read_bytes()


async def test_only_the_last_revisions_are_kept(versions: Repository, start: Start) -> None:
    async with start() as service:
        for number in range(15):
            versions.set_traffic("m", "stable", plan(("stable", 1, 1), ("bad", 4, 1 + number)))
            await service.look()
            await service.call(key="k")
            await service.keeper.keep()
        kept = sorted(int(path.name) for path in (versions.root.parent / "state" / "traffic" / "m" / "stable").iterdir())
        assert kept == list(range(4, 16))


async def test_an_arm_whose_answers_disagree_is_taken_out(versions: Repository, start: Start) -> None:
    guarded = plan(
        ("stable", 1, 1),
        ("other", 3, 1),
        shadow=Shadow(version=3, share=1),
        guardrails=Guardrails(min_agreement=0.9, min_calls=20),
    )
    versions.set_traffic("m", "stable", guarded)
    async with start() as service:
        for number in range(120):
            await service.call(number, f"user-{number}")
            await service.shadows.settle()
        await service.keeper.keep()
        shadow = live(service).total().shadow
        assert (shadow.agreement.count, shadow.dropped, shadow.failed) == (live(service).total().arm("stable").calls, 0, 0)
        assert "agreement 0." in live(service).taken_out["other"]
