"""How a channel's calls are split: whole plans or none, revisions that only grow, and versions that cannot go away."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.repository.manifest import Signature, TensorSpec
from services.repository.store import InUse, Repository, UnknownModel
from services.repository.traffic import Arm, BadTraffic, Guardrails, Plan, Shadow, Splits, StaleRevision, UnknownArm
from tests.repository.conftest import Seal


def plan(*arms: tuple[str, int, float], **more: Any) -> Plan:
    return Plan(arms=tuple(Arm(name=name, version=version, weight=weight) for name, version, weight in arms), **more)


HALVES = plan(("stable", 1, 1), ("new", 2, 1))


@pytest.fixture
def two(repository: Repository, seal: Seal) -> Repository:
    """A model with three versions whose `stable` channel points at the first."""
    for content in (b"one", b"two", b"three"):
        seal(content=content)
    repository.set_channel("m", "stable", 1)
    return repository


def test_a_split_is_read_as_it_was_set(two: Repository) -> None:
    full = plan(
        ("stable", 1, 90),
        ("new", 2, 10),
        shadow=Shadow(version=2, share=0.25),
        guardrails=Guardrails(max_error_rate=0.01, max_p99_ratio=1.5, min_agreement=0.99, min_calls=50),
        experiment="colours",
    )
    assert two.traffic("m") == {}
    made = two.set_traffic("m", "stable", full)
    assert (made.revision, made.plan) == (1, full)
    assert Repository(two.root).traffic("m") == {"stable": made}
    assert two.channels("m") == {"stable": 1}  # the split's file is no channel


def test_the_same_plan_again_is_the_same_revision_and_another_is_the_next(two: Repository) -> None:
    first = two.set_traffic("m", "stable", HALVES)
    assert two.set_traffic("m", "stable", HALVES) == first
    other = two.set_traffic("m", "stable", plan(("stable", 1, 3), ("new", 2, 1)), expected=first.revision)
    assert other.revision == 2
    with pytest.raises(StaleRevision, match="revision 1 was read, 2 is the last"):
        two.set_traffic("m", "stable", HALVES, expected=1)
    assert two.traffic("m") == {"stable": other}


def test_a_revision_is_never_given_twice(two: Repository) -> None:
    two.set_traffic("m", "stable", HALVES)
    two.clear_traffic("m", "stable")
    two.clear_traffic("m", "stable")
    assert two.traffic("m") == {}
    assert two.set_traffic("m", "stable", HALVES).revision == 3


@pytest.mark.parametrize("move", ["set_channel", "roll_back", "promote_arm"])
def test_moving_the_channel_ends_its_split(two: Repository, move: str) -> None:
    two.set_channel("m", "stable", 3)
    two.set_channel("m", "stable", 1)
    two.set_traffic("m", "stable", HALVES)
    arguments = {"set_channel": ("stable", 2), "roll_back": ("stable",), "promote_arm": ("stable", "new")}[move]
    moved = getattr(two, move)("m", *arguments)
    assert moved.version == {"set_channel": 2, "roll_back": 3, "promote_arm": 2}[move]
    assert two.channels("m")["stable"] == moved.version
    assert two.traffic("m") == {}
    two.set_channel("m", "stable", 1)
    assert two.traffic("m") == {}  # it does not come back with its control


def test_a_split_whose_channel_moved_without_it_has_ended(two: Repository) -> None:
    """As a process that was killed between the two leaves it."""
    two.set_traffic("m", "stable", HALVES)
    (two.root / "models" / "m" / "channels" / "stable").write_text('{"versions": [2, 1]}')
    assert two.traffic("m") == {}


def test_a_version_that_a_split_uses_is_not_deleted(two: Repository) -> None:
    two.set_traffic("m", "stable", plan(("stable", 1, 1), ("new", 2, 1), shadow=Shadow(version=3, share=1)))
    for version in (2, 3):
        with pytest.raises(InUse, match=f"m@{version} is used by the traffic of channel stable"):
            two.delete("m", version)
    two.clear_traffic("m", "stable")
    two.delete("m", 2)


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (plan(("stable", 1, 1), ("stable", 2, 1)), r"arms\[1\].name: 'stable' is named twice"),
        (plan(("stable", 1, 1)), "arms: one arm and no shadow"),
        (plan(("stable", 1, 1e308), ("new", 2, 1e308)), "arms: the sum of the weights"),
        (plan(("new", 2, 1), ("stable", 1, 1)), r"arms\[0\].version: the control must be version 1, which m:stable points at"),
        (plan(("stable", 1, 1), shadow=Shadow(version=1, share=1)), "shadow.version: 1 is the control's own"),
        (plan(("stable", 1, 1), ("new", 2, 1), guardrails=Guardrails(min_agreement=0.9)), "guardrails.min_agreement"),
        (
            plan(("stable", 1, 1), ("new", 2, 1), shadow=Shadow(version=3, share=1), guardrails=Guardrails(min_agreement=0.9)),
            "guardrails.min_agreement",
        ),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(two: Repository, broken: Plan, text: str) -> None:
    with pytest.raises(BadTraffic, match=text):
        two.set_traffic("m", "stable", broken)
    assert two.traffic("m") == {}


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_a_weight_is_a_positive_number(weight: float) -> None:
    with pytest.raises(ValidationError):
        plan(("stable", 1, weight), ("new", 2, 1))


def test_versions_and_channels_must_exist(two: Repository) -> None:
    with pytest.raises(UnknownModel, match="no version 9"):
        two.set_traffic("m", "stable", plan(("stable", 1, 1), ("new", 9, 1)))
    with pytest.raises(UnknownModel, match="no channel 'canary'"):
        two.set_traffic("m", "canary", HALVES)
    with pytest.raises(UnknownModel, match="no model 'nobody'"):
        two.set_traffic("nobody", "stable", HALVES)
    with pytest.raises(UnknownArm, match="not split"):
        two.promote_arm("m", "stable", "new")
    two.set_traffic("m", "stable", HALVES)
    with pytest.raises(UnknownArm, match="no arm 'old'; there are stable, new"):
        two.promote_arm("m", "stable", "old")


@pytest.mark.parametrize(
    ("change", "noun"),
    [
        ({"outputs": (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)}, "outputs"),
        ({"inputs": (TensorSpec(name="z", datatype="FP32", shape=(-1, 3)),)}, "inputs"),
        ({"labels": ("a", "b")}, "labels"),
    ],
)
def test_versions_of_a_split_answer_alike(two: Repository, seal: Seal, signature: Signature, change: Any, noun: str) -> None:
    other = seal(content=b"other", like=signature.model_copy(update=change)).version
    with pytest.raises(BadTraffic, match=rf"arms\[1\].version: its {noun} differ"):
        two.set_traffic("m", "stable", plan(("stable", 1, 1), ("new", other, 1)))
    with pytest.raises(BadTraffic, match=rf"shadow.version: its {noun} differ"):
        two.set_traffic("m", "stable", plan(("stable", 1, 1), shadow=Shadow(version=other, share=1)))


def test_a_change_of_a_split_is_seen_as_a_channels_move_is(two: Repository) -> None:
    folder = two.root / "models" / "m" / "channels"
    os.utime(folder, ns=(0, 0))
    two.set_traffic("m", "stable", HALVES)
    assert two.channels_changed_ns("m") > 0


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b'{"revision": 0}', b'{"revision": 1, "plan": {"arms": []}}', b'{"plan": null}']
)
def test_a_corrupt_file_is_as_if_it_were_not_there(two: Repository, content: bytes) -> None:
    two.set_traffic("m", "stable", HALVES)
    (two.root / "models" / "m" / "channels" / "stable.traffic").write_bytes(content)
    assert two.traffic("m") == {}
    assert two.set_traffic("m", "stable", HALVES).plan == HALVES


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([HALVES, plan(("stable", 1, 2), ("new", 2, 1)), None]), max_size=8))
def test_any_order_of_setting_and_clearing_gives_growing_revisions(steps: list[Plan | None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        splits, revisions = Splits(Path(folder)), [0]
        for step in steps:
            if step is None:
                splits.clear("stable")
            else:
                splits.set("stable", step)
            found = splits.of("stable")
            revisions.append(found.revision if found else 0)
            assert (found.plan if found else None) == step
    assert revisions == sorted(revisions)
