"""What a recipe is expected to lose, as the examples at hand are going to tell it."""

from dataclasses import replace

import pytest

from services.optimization.advisor.expectations import Expectations
from services.optimization.advisor.guess import Guess, Loss, Prior
from services.optimization.advisor.observation import NOWHERE, Context, Observation
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.recipe import Step
from services.optimization.report import Interval

HERE = Context(model="m", data="the same", metric="ACCURACY", libraries="some")
PRIORS = {
    name: Prior(Guess(speedup, 0.3), Guess(1.0, 0.0), Loss(loss), "told")
    for name, speedup, loss in (("onnx", 1.3, 0.0), ("int8", 2, 0.02), ("selective", 0.8, 0.0), ("student", 4, 0.0))
}
TRAININGS = {name: Prior(Guess(1.0, 0.0), Guess(1.0, 0.0), Loss(loss), "told") for name, loss in (("long", 0.01), ("short", 0.03))}
LIMIT = 0.01


def rung(*parts: str, training: str = "", no_worse: tuple[str, ...] = ()) -> Rung:
    steps = tuple(Step(technique=part) for part in ((training, *parts) if training else parts))
    named = (*parts, training) if training else parts
    return Rung("-".join(named), steps, named, 10, shape="shape" if training else "", training=training, no_worse=no_worse)


EXPORT, INT8 = rung("onnx"), rung("onnx", "int8")
LONG = rung("student", "onnx", "int8", training="long", no_worse=("long",))
SHORT = rung("student", "onnx", "int8", training="short", no_worse=("short", "long"))


def expectations(counted: int = 1_000, *evidence: Observation, here: Context = NOWHERE) -> Expectations:
    return Expectations({**PRIORS, **TRAININGS}, here, evidence, counted)


def trial(found: Rung, lost: float, by: float) -> Trial:
    return Trial(found, Interval(estimate=2, low=2, high=2), 1.0, Interval(estimate=lost, low=lost - by, high=lost + by), accepted=True)


def kept(found: Expectations, expected: Rung, limit: float = LIMIT) -> float:
    return found.of(expected).loss.chance_within(limit - found.doubt(expected))


@pytest.mark.parametrize("counted", [0, 30, 1_000])
def test_an_export_loses_nothing_however_few_the_examples(counted: int) -> None:
    found = expectations(counted)
    assert kept(found, EXPORT) == 1.0
    found.learn(trial(INT8, 0.005, 0.02))
    assert kept(found, EXPORT) == 1.0


def test_the_fewer_the_examples_the_less_room_there_is() -> None:
    for lossy in (INT8, LONG):
        few, some, many = (kept(expectations(counted), lossy) for counted in (300, 3_000, 300_000))
        assert 0 < few < some < many


def test_the_width_of_an_exact_export_says_nothing_of_int8() -> None:
    found, before = expectations(), expectations()
    found.learn(trial(EXPORT, 0.0, 0.0))
    assert found.doubt(INT8) == before.doubt(INT8) > 0
    found.learn(trial(INT8, 0.0, 0.004))
    assert found.doubt(rung("onnx", "int8", "selective")) == pytest.approx(0.004)


def test_another_way_to_int8_is_not_given_up_for_wide_intervals() -> None:
    found = expectations()
    found.learn(trial(INT8, -0.001, 0.0065))
    selective = replace(rung("onnx", "int8", "selective"), steps=(Step(technique="onnx"), Step(technique="selective")))
    assert kept(found, selective, 0.005) > 0.1


def test_what_an_earlier_job_measured_of_the_same_is_known_whatever_was_tried_since() -> None:
    parts = LONG.parts
    bad = Observation(parts=parts, context=HERE, speedup=9, size_ratio=6, loss=0.04, loss_spread=0.004)
    good = bad.model_copy(update={"loss": 0.001})
    lost, held = (expectations(500, known, here=HERE) for known in (bad, good))
    for known in (lost, held):
        known.learn(trial(EXPORT, 0.0, 0.0))
        known.learn(trial(INT8, 0.0, 0.008))
    assert kept(lost, LONG, 0.02) < 0.001
    assert kept(held, LONG, 0.02) > 0.99


def test_a_longer_training_bounds_a_shorter_one() -> None:
    found = expectations()
    before = kept(found, SHORT, 0.03)
    found.learn(trial(LONG, 0.06, 0.015))
    assert kept(found, SHORT, 0.03) < before / 20


def test_what_the_engine_lost_of_a_trained_one_is_not_known() -> None:
    """FP32 of a student whose INT8 lost a little too much: training is done, and INT8 may be what lost."""
    found = expectations()
    found.learn(trial(LONG, 0.03, 0.015))
    assert 0.05 < kept(found, rung("student", "onnx", training="long", no_worse=("long",)), 0.03) < 0.6
