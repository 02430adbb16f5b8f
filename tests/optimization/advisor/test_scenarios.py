"""Presets, explicit targets over them, and goals that are told to be none before anything is tried."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.advisor.scenarios import PRESETS, Fault, Original, Scenario, Targets, check, resolve
from services.optimization.recipe import Objective

ORIGINAL = Original(size_bytes=90_000_001, memory_bytes=300_000_000, empty_call_ms=0.8)
THROUGHPUT = Objective.THROUGHPUT


def only_fault(targets: Targets, objective: Objective = THROUGHPUT, original: Original = ORIGINAL) -> Fault:
    (found,) = check(targets, objective, original)
    return found


@pytest.mark.parametrize(
    ("scenario", "objective", "max_loss"),
    [
        (Scenario.LATENCY, Objective.LATENCY, 0.02),
        (Scenario.THROUGHPUT, Objective.THROUGHPUT, 0.05),
        (Scenario.RESOURCE, Objective.SIZE, 0.10),
    ],
)
def test_a_preset_decides_what_is_not_told(scenario: Scenario, objective: Objective, max_loss: float) -> None:
    preset = PRESETS[scenario]
    assert preset.objective is objective
    assert resolve(preset, Targets(min_speedup=3)) == Targets(max_loss=max_loss, min_speedup=3)


def test_every_scenario_has_a_preset_without_a_fault() -> None:
    assert set(PRESETS) == set(Scenario)
    for preset in PRESETS.values():
        assert check(resolve(preset, Targets()), preset.objective, ORIGINAL) == ()


def test_what_is_told_wins_over_the_preset_though_it_is_zero() -> None:
    assert resolve(PRESETS[Scenario.RESOURCE], Targets(max_loss=0.0)).max_loss == 0


def test_an_edited_preset_is_a_preset() -> None:
    edited = PRESETS[Scenario.LATENCY].model_copy(update={"targets": Targets(max_p99_ms=20, at_rows_per_second=50)})
    assert resolve(edited, Targets(max_p99_ms=10)) == Targets(max_p99_ms=10, at_rows_per_second=50)


@pytest.mark.parametrize(
    ("targets", "field", "nearest"),
    [
        (Targets(max_loss=-0.01), "max_loss", 0),
        (Targets(max_loss=2), "max_loss", 0.1),
        (Targets(min_speedup=0.9), "min_speedup", 1),
        (Targets(min_served_speedup=0), "min_served_speedup", 1),
        (Targets(max_size_bytes=0), "max_size_bytes", 11_250_001),
        (Targets(max_size_bytes=11_250_000), "max_size_bytes", 11_250_001),
        (Targets(max_size_bytes=90_000_002), "max_size_bytes", 90_000_001),
        (Targets(max_memory_bytes=11_250_000), "max_memory_bytes", 11_250_001),
        (Targets(max_memory_bytes=300_000_001), "max_memory_bytes", 300_000_000),
        (Targets(max_p99_ms=0.5), "max_p99_ms", 0.8),
        (Targets(at_rows_per_second=10), "at_rows_per_second", None),
        (Targets(at_rows_per_second=0, max_p99_ms=5), "at_rows_per_second", None),
    ],
)
def test_a_goal_that_cannot_be_met_is_told_with_the_nearest_that_can(targets: Targets, field: str, nearest: float | None) -> None:
    fault = only_fault(targets)
    assert (fault.field, fault.nearest) == (field, nearest)
    assert str(fault).startswith(f"{field}: ")
    if nearest is not None:
        assert f"{nearest:.12g}" in str(fault)
        assert check(targets.model_copy(update={field: nearest}), THROUGHPUT, ORIGINAL) == ()
    else:
        assert check(targets.model_copy(update={field: None}), THROUGHPUT, ORIGINAL) == ()


def test_all_faults_are_told_at_once() -> None:
    found = check(Targets(max_loss=-1, min_speedup=0.5, max_size_bytes=1, max_p99_ms=0.1), THROUGHPUT, ORIGINAL)
    assert {fault.field for fault in found} == {"max_loss", "min_speedup", "max_size_bytes", "max_p99_ms"}


def test_a_smaller_student_may_go_below_what_quantization_reaches() -> None:
    wanted = Targets(max_size_bytes=5_000_000)
    assert "student" in only_fault(wanted).reason
    assert check(wanted, THROUGHPUT, ORIGINAL, has_training=True) == ()


def test_a_small_model_may_be_slower_when_size_is_what_is_wanted() -> None:
    assert check(Targets(min_speedup=0.5), Objective.SIZE, ORIGINAL) == ()
    assert only_fault(Targets(min_speedup=0), Objective.SIZE).nearest is None
    assert only_fault(Targets(min_speedup=0.5), Objective.LATENCY).nearest == 1


@pytest.mark.parametrize(("bits", "least"), [(32, 125), (16, 250), (8, 500), (4, 1000), (1, 1000)])
def test_what_has_few_bits_already_has_less_to_lose(bits: int, least: int) -> None:
    assert Original(size_bytes=1000, bits_per_weight=bits).least_size_bytes == least


def test_what_is_not_known_of_the_original_is_not_checked() -> None:
    unknown = Original(size_bytes=1000)
    assert check(Targets(max_memory_bytes=10**12, max_p99_ms=1e-6), THROUGHPUT, unknown) == ()
    assert only_fault(Targets(max_p99_ms=0.0), original=unknown).nearest is None


@given(
    st.builds(
        Targets,
        max_size_bytes=st.none() | st.integers(-10, 2 * 10**8),
        max_memory_bytes=st.none() | st.integers(-10, 10**9),
        max_p99_ms=st.none() | st.floats(-1, 10),
        at_rows_per_second=st.none() | st.floats(-1, 10),
        min_speedup=st.none() | st.floats(-1, 10),
        min_served_speedup=st.none() | st.floats(-1, 10),
        max_loss=st.none() | st.floats(-1, 10),
    ),
    st.sampled_from(Objective),
    st.booleans(),
)
def test_the_nearest_goals_have_no_fault(targets: Targets, objective: Objective, has_training: bool) -> None:
    found = check(targets, objective, ORIGINAL, has_training=has_training)
    mended = targets.model_copy(update={fault.field: fault.nearest for fault in found})
    assert check(mended, objective, ORIGINAL, has_training=has_training) == ()
