import math
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.training import TrainingParameters
from services.optimization.training.schedule import cut, epoch_steps, is_evaluation, learning_rate, total_steps

SCHEDULES = st.sampled_from(["linear", "cosine", "constant"])


def rates(total: int, **parameters: object) -> list[float]:
    training = TrainingParameters.model_validate({"learning_rate": 1.0, "warmup_share": 0.2} | parameters)
    return [learning_rate(training, step, total) for step in range(total)]


def test_the_linear_schedule_rises_over_the_warmup_and_falls_to_one_step_above_zero() -> None:
    assert rates(10, schedule="linear") == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_the_cosine_schedule_is_half_way_in_the_middle() -> None:
    found = rates(10, schedule="cosine")
    assert found[:3] == pytest.approx([0.5, 1, 1])
    assert found[6] == pytest.approx(0.5)
    assert found[9] == pytest.approx(0.5 * (1 - math.cos(math.pi / 8)))


def test_the_constant_schedule_stays_at_its_peak() -> None:
    assert rates(5, schedule="constant") == pytest.approx([1] * 5)


@given(SCHEDULES, st.integers(1, 300), st.floats(0, 1))
def test_a_rate_is_positive_and_never_above_the_peak(schedule: str, total: int, warmup: float) -> None:
    found = rates(total, schedule=schedule, warmup_share=warmup)
    assert all(0 < rate <= 1 for rate in found)
    peak = found.index(max(found))
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


@given(st.integers(1, 200), st.integers(1, 40))
def test_cutting_loses_nothing_and_leaves_no_row_alone(rows: int, size: int) -> None:
    chunks = cut(range(rows), size)
    assert [row for chunk in chunks for row in chunk] == list(range(rows))
    assert all(len(chunk) <= size + 1 for chunk in chunks)
    if size > 1 and rows > 1:
        assert all(len(chunk) > 1 for chunk in chunks)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=300), st.integers(2, 8), st.integers(1, 4), st.integers(0, 5))
def test_an_epoch_sees_every_position_once(lengths: list[int], batch: int, accumulation: int, epoch: int) -> None:
    training = TrainingParameters(batch_rows=batch, gradient_accumulation=accumulation)
    steps = epoch_steps(np.array(lengths), training, 1, epoch)
    assert sorted(position for step in steps for part in step for position in part) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 60), min_size=2, max_size=300))
def test_accumulated_batches_hold_the_rows_of_the_large_one(lengths: list[int]) -> None:
    large = epoch_steps(np.array(lengths), TrainingParameters(batch_rows=12), 3, 0)
    small = epoch_steps(np.array(lengths), TrainingParameters(batch_rows=3, gradient_accumulation=4), 3, 0)
    assert [sorted(chain(*step)) for step in large] == [sorted(chain(*step)) for step in small]


def test_batches_are_of_like_lengths_and_epochs_of_unlike_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 640)
    steps = epoch_steps(lengths, TrainingParameters(batch_rows=16), 0, 0)
    spread = np.mean([np.ptp(lengths[part]) for step in steps for part in step])
    assert spread < 15
    assert steps == epoch_steps(lengths, TrainingParameters(batch_rows=16), 0, 0)
    assert steps != epoch_steps(lengths, TrainingParameters(batch_rows=16), 0, 1)
    assert steps != epoch_steps(lengths, TrainingParameters(batch_rows=16), 1, 0)


@given(st.integers(1, 200), st.integers(1, 200))
def test_evaluations_are_as_many_as_asked_and_one_ends_the_epoch(steps: int, evaluations: int) -> None:
    due = [done for done in range(1, steps + 1) if is_evaluation(done, steps, evaluations)]
    assert len(due) == min(steps, evaluations)
    assert due[-1] == steps


def test_max_steps_cuts_the_epochs_and_never_adds_to_them() -> None:
    assert total_steps(TrainingParameters(epochs=3), 7) == 21
    assert total_steps(TrainingParameters(epochs=3, max_steps=5), 7) == 5
    assert total_steps(TrainingParameters(epochs=3, max_steps=500), 7) == 21
