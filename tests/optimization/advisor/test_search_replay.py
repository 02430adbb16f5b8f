"""What replays of a search cost and find, over a table that is worked out by hand."""

from itertools import permutations
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.replay import Band, Cell, Purse, Table
from services.optimization.advisor.guess import Guess, Loss, Prior
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.search import Search
from services.optimization.advisor.wanted import Wanted
from services.optimization.recipe import Step
from services.optimization.report import Interval

EXPORT, QUANTIZE, STUDENT, TAUGHT = (Step(technique=name) for name in ("export_onnx", "dynamic_int8", "student", "taught"))


def cell(name: str, made: list[tuple[Step, float]], speedup: float, loss: float | None, shape: str = "", **shared: float) -> Cell:
    """Of the parts that its name tells; measured in 5 seconds, its loss to half a point. Without a loss it is a shape."""
    seconds = tuple(found for _, found in made)
    told = {"is_shape": loss is None, "shape": shape, "step_seconds": seconds}
    rung = Rung(name, tuple(step for step, _ in made), tuple(name.split("-")), sum(seconds) + 5, **told)
    lost = None if loss is None else Interval(estimate=loss, low=loss - 0.005, high=loss + 0.005)
    fast = Interval(estimate=speedup, low=speedup, high=speedup)
    return Cell(rung, Trial(rung, fast, 1.0, lost, accepted=loss is not None), seconds, 5.0, shared)


ONNX = cell("onnx", [(EXPORT, 10)], 1.5, 0.0)
INT8 = cell("onnx-int8", [(EXPORT, 10), (QUANTIZE, 20)], 3.0, 0.004)
SHAPE = cell("small-onnx", [(STUDENT, 2), (EXPORT, 10)], 6.2, None)
SMALL = cell("small-onnx-taught", [(TAUGHT, 100), (EXPORT, 10)], 6.0, 0.01, "small-onnx", teacher=40)
SMALL_INT8 = cell("small-onnx-int8-taught", [(TAUGHT, 100), (EXPORT, 10), (QUANTIZE, 20)], 12.0, 0.03, teacher=40)
CELLS = (ONNX, INT8, SHAPE, SMALL, SMALL_INT8)
TABLE = Table(CELLS)
GRID_S = 15 + 25 + (40 + 100 + 10 + 5) + 25  # ONNX, INT8 on it, SMALL with its teacher, INT8 on that; no shape


def prior(speedup: float, loss: float = 0.0) -> Prior:
    return Prior(Guess(speedup, 0.4), Guess(1.0, 0.0), Loss(loss), "told")


TRAINING = Prior(Guess(1.0, 0.0), Guess(1.0, 0.0), Loss(0.01), "told")  # which changes no speed
PRIORS = {"onnx": prior(1.3), "int8": prior(2.0, 0.005), "small": prior(4.0), "taught": TRAINING}


def test_the_grid_makes_every_step_once_and_no_shape() -> None:
    assert TABLE.grid_seconds == GRID_S == 220


def test_steps_in_common_are_paid_once_in_any_order() -> None:
    for order in permutations(TABLE.grid):
        purse = Purse()
        assert sum(purse.pay(each) for each in order) == purse.seconds == GRID_S


def test_a_price_is_of_what_was_not_made_yet() -> None:
    purse = Purse()
    assert purse.price(SMALL_INT8) == 175
    purse.pay(SMALL)
    assert purse.price(SMALL_INT8) == 25
    assert purse.price(ONNX) == 15  # the same export, of another model


def test_a_loss_that_may_be_too_much_is_not_accepted() -> None:
    assert SMALL.judged(0.015).accepted
    assert not SMALL.judged(0.0149).accepted
    assert not SHAPE.judged(1.0).accepted
    assert TABLE.best(0.01) == 3.0
    assert TABLE.best(0.02) == 6.0
    assert TABLE.best(0.001) == 1.0  # the original


def test_the_best_so_far_rises_when_a_trial_is_done() -> None:
    replay = TABLE.in_order([ONNX, INT8, SMALL], Wanted(0.02))
    assert [replay.best_by(seconds) for seconds in (0, 14.9, 15, 39.9, 40, 194.9, 195)] == [1, 1, 1.5, 1.5, 3, 3, 6]
    assert replay.met_at(Wanted(0.02, speedup=2.5)) == 40
    assert replay.met_at(Wanted(0.02, speedup=7)) == inf


def test_an_order_ends_when_the_target_is_met() -> None:
    replay = TABLE.in_order([ONNX, INT8, SMALL], Wanted(0.02, speedup=2.5))
    assert [move.trial.rung.name for move in replay.moves] == ["onnx", "onnx-int8"]
    assert replay.seconds == 40


def test_an_order_skips_what_the_budget_is_too_short_for() -> None:
    replay = TABLE.in_order([SMALL, ONNX, INT8], Wanted(0.02), budget_seconds=40)
    assert [move.trial.rung.name for move in replay.moves] == ["onnx", "onnx-int8"]
    assert replay.seconds == 40


def test_the_search_pays_for_its_shapes() -> None:
    replay = TABLE.searched(Wanted(0.02, speedup=5.5), PRIORS)
    by_name = {move.trial.rung.name: move for move in replay.moves}
    assert replay.met_at(Wanted(0.02, speedup=5.5)) == replay.seconds
    assert by_name["small-onnx"].seconds == 17
    assert by_name["small-onnx-taught"].expected_speedup == pytest.approx(6.2)


def test_the_search_plans_no_step_twice() -> None:
    search = Search([each.rung for each in CELLS], Wanted(0.02), PRIORS)
    assert search.seconds_of(SMALL_INT8.rung) == 135
    search.learn(SMALL.trial)
    assert search.seconds_of(SMALL_INT8.rung) == 25
    assert search.seconds_of(INT8.rung) == 35  # the same export, of another model


def test_what_the_search_begins_too_late_takes_the_rest_and_tells_nothing() -> None:
    hurried = Table([Cell(each.rung, each.trial, each.step_seconds, 500.0) for each in CELLS])  # planned to take 5
    replay = hurried.searched(Wanted(0.02), PRIORS, budget_seconds=100)
    assert replay.moves == ()
    assert replay.seconds == 100
    assert replay.best_by(inf) == 1.0


def test_random_orders_are_uniform() -> None:
    wanted = Wanted(0.02, speedup=5.5)
    alike = Table([cell(name, [(Step(technique=name), 5)], speedup, 0.0) for name, speedup in (("a", 1.0), ("b", 2.0), ("c", 6.0))])
    ends = [replay.met_at(wanted) for replay in alike.at_random(wanted, 3000)]
    for seconds in (10, 20, 30):
        assert ends.count(seconds) / 3000 == pytest.approx(1 / 3, abs=0.03)


def test_a_band_holds_what_was_seen() -> None:
    assert Band.of(range(1, 101)) == Band(50, 5, 95)
    assert Band.of([*range(1, 90), *[inf] * 11]) == Band(50, 5, inf)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.1, 0.99))
def test_a_band_is_ordered_and_wide_enough(values: list[float], share: float) -> None:
    band = Band.of(values, share)
    assert band.low <= band.median <= band.high
    assert sum(band.low <= value <= band.high for value in values) >= share * len(values) - 1


@given(st.permutations(TABLE.grid), st.floats(1, 250))
def test_more_time_finds_no_less(order: list[Cell], seconds: float) -> None:
    replay = TABLE.in_order(order, Wanted(0.02))
    assert replay.best_by(seconds) <= replay.best_by(seconds + 10) <= replay.best_by(inf) == TABLE.best(0.02)
