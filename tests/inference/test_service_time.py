"""What the service time learns, from machines that are made up."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.service_time import TRUSTED, ServiceTime

Machine = Callable[[int, int], float]

MACHINES: dict[str, Machine] = {
    "linear": lambda rows, longest: 0.002 + 3e-5 * rows * longest,
    "attention": lambda rows, longest: 0.002 + 1e-4 * rows * longest + 6e-7 * rows * longest**2,
    "by the row": lambda rows, longest: 0.001 + 3e-3 * rows,
    "launches": lambda rows, longest: 0.02 + 1e-6 * rows * longest,
    "tiny": lambda rows, longest: 2e-5 + 1e-7 * rows * longest,
    "huge": lambda rows, longest: 0.5 + 5e-2 * rows * longest,
}
PLACES = ((1, 8), (1, 256), (8, 32), (16, 64), (8, 400))
samples = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 512), st.floats(0, 10)), max_size=60)


def batches(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Sizes as a mixed queue brings them."""
    draw = random.Random(seed)
    return [(draw.randint(1, 32), draw.choice((draw.randint(4, 40), draw.randint(100, 500)))) for _ in range(count)]


def taught(machine: Machine, count: int, noise: float = 0.0) -> ServiceTime:
    model, draw = ServiceTime(), random.Random(1)
    for rows, longest in batches(count):
        model.learn(rows, longest, machine(rows, longest) * math.exp(draw.gauss(0, noise)))
    return model


def off(model: ServiceTime, machine: Machine) -> float:
    """The greatest relative error."""
    return max(abs(model.predict(*place) / machine(*place) - 1) for place in PLACES)


@pytest.mark.parametrize("name", MACHINES)
def test_learns_the_machine_that_made_the_samples(name: str) -> None:
    assert off(taught(MACHINES[name], 60), MACHINES[name]) < 0.1


@pytest.mark.parametrize("name", MACHINES)
def test_noise_averages_out(name: str) -> None:
    assert off(taught(MACHINES[name], 200, noise=0.1), MACHINES[name]) < 0.25


@pytest.mark.parametrize("name", MACHINES)
def test_the_first_batch_tells_how_fast_the_machine_is(name: str) -> None:
    model = ServiceTime()
    model.learn(8, 32, MACHINES[name](8, 32))
    assert model.predict(8, 32) == pytest.approx(MACHINES[name](8, 32), rel=0.01)


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_follows_a_change_of_speed_within_a_few_batches(factor: float) -> None:
    machine = MACHINES["attention"]
    model = taught(machine, 200)
    for rows, longest in batches(5, seed=2):
        model.learn(rows, longest, factor * machine(rows, longest))
    assert off(model, lambda rows, longest: factor * machine(rows, longest)) < 0.5
    for rows, longest in batches(100, seed=3):
        model.learn(rows, longest, factor * machine(rows, longest))
    assert off(model, lambda rows, longest: factor * machine(rows, longest)) < 0.1


@pytest.mark.parametrize("factor", [0.02, 50.0])
def test_one_outlier_changes_nothing_much(factor: float) -> None:
    machine = MACHINES["attention"]
    model = taught(machine, 100)
    model.learn(8, 32, factor * machine(8, 32))
    assert off(model, machine) < 0.1


def test_equal_sizes_are_learned_too() -> None:
    model = ServiceTime()
    for _ in range(50):
        model.learn(8, 16, 0.004)
    assert model.predict(8, 16) == pytest.approx(0.004, rel=0.01)
    assert model.predict(8, 16) < model.predict(8, 64) < 20 * 0.004


@given(samples)
def test_predicts_something_positive_that_rises_whatever_was_measured(measured: list[tuple[int, int, float]]) -> None:
    model = ServiceTime()
    for rows, longest, seconds in measured:
        model.learn(rows, longest, seconds)
        assert math.isfinite(model.predict(64, 512))
        assert 0 < model.predict(1, 1) <= model.predict(8, 32) <= model.predict(9, 32) <= model.predict(9, 64)
        assert 0 <= model.sure_share <= 1


@given(samples)
def test_a_row_more_costs_no_more_each_than_those_before(measured: list[tuple[int, int, float]]) -> None:
    """Which lets the batcher pass over windows without looking at every size."""
    model = ServiceTime()
    for rows, longest, seconds in measured:
        model.learn(rows, longest, seconds)
    assert model.predict(9, 40) / 9 <= model.predict(8, 40) / 8 * (1 + 1e-9)


def test_is_trusted_when_enough_ran_and_the_more_the_better_it_predicts() -> None:
    assert taught(MACHINES["linear"], TRUSTED - 1).sure_share == 0
    steady, noisy = taught(MACHINES["linear"], 100), taught(MACHINES["linear"], 100, noise=0.5)
    assert steady.error < 0.05 < 0.2 < noisy.error
    assert steady.sure_share > 0.9 > 0.7 > noisy.sure_share > 0
