"""The order in which recipes are tried, and when trying ends."""

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.advisor.front import front
from services.optimization.advisor.guess import Guess, Loss, Prior
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.search import HOPELESS, Search, Stop
from services.optimization.advisor.wanted import Wanted
from services.optimization.recipe import Step
from services.optimization.report import Interval

EXPORT, QUANTIZE, STUDENT, TAUGHT = (Step(technique=name) for name in ("export_onnx", "dynamic_int8", "student", "taught"))


def exactly(value: float) -> Interval:
    return Interval(estimate=value, low=value, high=value)


def prior(speedup: float, loss: float = 0.0, spread: float = 0.3) -> Prior:
    return Prior(Guess(speedup, spread), Guess(1.0, 0.0), Loss(loss), "told")


def tried(rung: Rung, speedup: float, loss: float | None = 0.0, size_ratio: float = 1.0) -> Trial:
    accepted = loss is not None and loss <= 0.01
    return Trial(rung, exactly(speedup), size_ratio, None if loss is None else exactly(loss), accepted)


ONNX = Rung("onnx", (EXPORT,), ("onnx",), 10)
INT8 = Rung("onnx-int8", (EXPORT, QUANTIZE), ("onnx", "int8"), 30)
SHAPE = Rung("shape", (STUDENT, EXPORT, QUANTIZE), ("student", "onnx", "int8"), 20, is_shape=True)
SMALL = Rung("small", (TAUGHT, EXPORT, QUANTIZE), ("student", "onnx", "int8", "taught"), 600, shape="shape")
RUNGS = (ONNX, INT8, SHAPE, SMALL)
PRIORS = {"onnx": prior(1.3), "int8": prior(2, 0.005), "student": prior(4, 0.005), "taught": prior(1, 0.01, spread=0)}


def search(**wanted: float) -> Search:
    return Search(RUNGS, Wanted(**{"max_loss": 0.01, **wanted}), PRIORS)


def play(found: Search, outcomes: dict[str, Trial], seconds: float = 1e6) -> tuple[list[str], Stop]:
    names = []
    while isinstance(rung := found.next(seconds), Rung):
        names.append(rung.name)
        found.learn(outcomes[rung.name])
        seconds -= rung.seconds
    return names, rung


OUTCOMES = {
    "onnx": tried(ONNX, 1.3),
    "onnx-int8": tried(INT8, 2.0, 0.002),
    "shape": tried(SHAPE, 8.0, None),
    "small": tried(SMALL, 8.0, 0.004),
}


def test_a_near_target_is_met_by_what_costs_least() -> None:
    names, stop = play(search(speedup=1.2), OUTCOMES)
    assert names == ["onnx"]
    assert stop.is_reached


def test_a_far_target_skips_what_cannot_reach_it() -> None:
    names, stop = play(search(speedup=7), OUTCOMES)
    assert names == ["shape", "small"]  # neither onnx nor INT8 alone has a chance of seven times
    assert stop.is_reached


def test_a_shape_that_is_too_slow_spares_its_training() -> None:
    names, stop = play(search(speedup=7), OUTCOMES | {"shape": tried(SHAPE, 5.0, None)})
    assert "small" not in names
    assert not stop.is_reached
    assert "likely" in stop.reason


def test_without_a_target_it_goes_on_while_something_better_is_likely() -> None:
    names, stop = play(search(), OUTCOMES)
    assert set(names) == {"onnx", "onnx-int8", "shape", "small"}
    assert stop.reason == "everything was tried"


def test_another_shape_is_looked_at_before_what_may_be_too_slow_is_trained() -> None:
    """A look costs seconds, training minutes; where the best is known to be fast enough, nothing else is looked at."""
    narrow_shape = replace(SHAPE, name="narrow-shape", parts=("narrow", "int8"))
    narrow = replace(SMALL, name="narrow", parts=("narrow", "int8", "narrow-taught"), shape="narrow-shape")
    priors = {**PRIORS, "narrow": prior(3.5, 0.006), "narrow-taught": prior(1, 0.012, spread=0)}

    def after(speedup: float) -> Rung | Stop:
        found = Search((SHAPE, SMALL, narrow_shape, narrow), Wanted(0.01, speedup=7.0), priors)
        assert found.next(1e6) is SHAPE
        found.learn(tried(SHAPE, speedup, None))
        return found.next(1e6)

    assert after(6.5) is narrow_shape
    assert after(9.0) is SMALL


def test_a_look_that_takes_long_is_not_taken_lightly() -> None:
    """What is likely to be too slow comes cheap while its look does; a run through the service makes it dear."""
    slow = replace(SHAPE, name="slow-shape", parts=("slow", "int8"))
    doubtful = replace(SMALL, name="doubtful", parts=("slow", "int8", "taught"), shape="slow-shape")
    priors = {**PRIORS, "slow": prior(2)}

    def index(serving_seconds: float) -> float:
        found = Search((slow, doubtful), Wanted(0.01, served_speedup=7.0), priors, serving_seconds=serving_seconds)
        (outlook,) = found.outlooks()
        assert outlook.seconds == 620 + serving_seconds
        return outlook.index

    assert index(200) < index(0) / 2


@pytest.mark.parametrize(
    ("parts", "no_worse"),
    [
        (("student", "onnx", "int8", "taught-less"), ("taught-less", "taught")),  # a shorter training
        (("student", "onnx", "taught"), ("taught",)),  # the same training, run in FP32
    ],
)
def test_where_a_training_lost_too_much_a_lesser_one_and_another_engine_are_spared(
    parts: tuple[str, ...], no_worse: tuple[str, ...]
) -> None:
    other = Rung(
        "other",
        (TAUGHT.model_copy(update={"parameters": {"epochs": 1}}),),
        parts,
        100,
        shape="shape",
        training=parts[-1],
        no_worse=no_worse,
    )
    small = replace(SMALL, training="taught", no_worse=("taught",))
    priors = {**PRIORS, "taught-less": prior(1, 0.02, spread=0)}

    def chance_after(loss: float) -> float:
        found = Search((SHAPE, small, other), Wanted(0.02, speedup=5.0), priors)
        found.learn(tried(SHAPE, 9.0, None))
        found.learn(tried(small, 9.0, loss))
        return next(outlook.chance for outlook in found.outlooks() if outlook.rung is other)

    assert chance_after(0.06) < HOPELESS
    assert chance_after(0.001) > 0.3


def test_few_examples_leave_less_room_before_anything_is_trained() -> None:
    few, many = (Search(RUNGS, Wanted(0.01, speedup=6.0), PRIORS, counted=counted) for counted in (1_000, 100_000))
    chances = [next(outlook.chance for outlook in found.outlooks() if outlook.rung is SMALL) for found in (few, many)]
    assert chances[0] < chances[1] / 2


def test_what_is_built_upon_a_failure_is_not_tried() -> None:
    names, _ = play(search(speedup=1.2), OUTCOMES | {"onnx": Trial(ONNX, reason="does not export")})
    assert names[0] == "onnx"
    assert names.count("onnx-int8") == 0


def test_time_that_is_left_bounds_what_is_begun() -> None:
    names, stop = play(search(speedup=7), OUTCOMES, seconds=300)
    assert names == ["shape"] or not names
    assert "too short" in stop.reason


def test_a_loss_that_was_measured_counts_for_what_is_built_upon_it() -> None:
    found = search(speedup=7)
    before = {outlook.rung.name: outlook.chance for outlook in found.outlooks()}
    found.learn(tried(INT8, 2.0, 0.05))
    after = {outlook.rung.name: outlook.chance for outlook in found.outlooks()}
    assert after["small"] < before["small"] / 2


def test_a_measured_speed_replaces_its_guess() -> None:
    found = search(speedup=7)
    found.learn(tried(SHAPE, 9.0, None))
    (small,) = [outlook for outlook in found.outlooks() if outlook.rung.name == "small"]
    assert small.expected.speedup.median == pytest.approx(9.0)
    assert small.seconds == SMALL.seconds  # its shape costs nothing any more


@given(
    st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(1, 1000)), min_size=2, max_size=5),
)
def test_chance_over_cost_is_the_cheapest_order(boxes: list[tuple[float, float]]) -> None:
    """Against every other order, where each recipe's chance is its own."""
    rungs = [Rung(f"r{number}", (EXPORT,), (f"p{number}",), seconds) for number, (_, seconds) in enumerate(boxes)]
    # exp(-bound / mean) with a bound of 1 leaves `chance` within it.
    priors = {f"p{number}": Prior(Guess(1, 0), Guess(1, 0), Loss(_mean_of(chance)), "told") for number, (chance, _) in enumerate(boxes)}
    found = Search(rungs, Wanted(max_loss=1.0, speedup=1.0), priors)
    chosen = [outlook.rung.name for outlook in found.outlooks()]
    costs = {tuple(order): _expected_seconds(order, boxes) for order in permutations(range(len(boxes)))}
    assert costs[tuple(int(name[1:]) for name in chosen)] <= min(costs.values()) * (1 + 1e-9)


def _mean_of(chance: float) -> float:
    from math import log

    return -1 / log(1 - chance)


def _expected_seconds(order: tuple[int, ...], boxes: list[tuple[float, float]]) -> float:
    total, still = 0.0, 1.0
    for number in order:
        chance, seconds = boxes[number]
        total += still * seconds
        still *= 1 - chance
    return total


def test_an_exhaustive_search_leaves_nothing_out() -> None:
    found = Search(RUNGS, Wanted(max_loss=0.01, speedup=1.2), PRIORS, exhaustive=True)
    names, stop = play(found, OUTCOMES)
    assert set(names) == set(OUTCOMES)
    assert stop.is_reached


def test_the_front_is_what_no_other_beats() -> None:
    slow, fast, worse = tried(ONNX, 1.3, 0.0), tried(INT8, 2.0, 0.002), tried(SMALL, 1.9, 0.004)
    assert front([slow, fast, worse]) == [slow, fast]
    assert front([tried(SMALL, 9, 0.5)]) == []


def test_a_wide_interval_of_what_was_trained_leaves_the_next_less_room() -> None:
    """The gates judge by the worse bound: what is measured on few examples has to lose less by its estimate."""
    other = Rung("other", (STUDENT, TAUGHT, QUANTIZE), ("student", "int8", "taught"), 600, shape="shape")

    def chance_after(half: float) -> float:
        found = Search((*RUNGS, other), Wanted(0.01, speedup=6.0), PRIORS)
        found.learn(OUTCOMES["shape"])
        loss = Interval(estimate=0.008, low=0.008 - half, high=0.008 + half)
        found.learn(Trial(other, exactly(4.0), 1.0, loss))
        return next(outlook.chance for outlook in found.outlooks() if outlook.rung is SMALL)

    assert chance_after(0.02) < chance_after(0.001)


def test_where_bytes_are_sought_the_best_so_far_is_the_smallest() -> None:
    sizes = {**PRIORS, "int8": Prior(Guess(2, 0.3), Guess(4.0, 0.1), Loss(0.001), "told")}
    found = Search((ONNX, INT8), Wanted(0.01, is_small_best=True), sizes)
    found.learn(tried(ONNX, 5.0))
    assert found.next(1e6) is INT8
    found.learn(tried(INT8, 1.0, 0.002, size_ratio=4.0))
    assert found.wanted.merit(found.trials[-1]) == 4.0
    assert isinstance(found.next(1e6), Stop)
