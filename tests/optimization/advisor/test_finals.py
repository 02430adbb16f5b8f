"""A job's final measurements as trials of the ladder."""

from pathlib import Path
from typing import Any

import pytest

from services.optimization.advisor.anatomy import anatomy_of
from services.optimization.advisor.finals import final_trials
from services.optimization.advisor.ladder import Anatomy
from services.optimization.advisor.rung import Trial
from services.optimization.evaluation.metrics import Metric
from services.optimization.recipe import Kinds, Step, default_recipes
from services.optimization.report import Candidate, Interval, Quality, Verdict
from services.optimization.techniques import Model
from services.repository.manifest import Format
from tests.models import classifier_signature

EXPORT = Step(technique="export_onnx")
FASTER = Interval(estimate=1.8, low=1.7, high=1.9)
FAITHFUL = Interval(estimate=0.97, low=0.95, high=0.99)
NO_DATA, ALL_DATA = Kinds(calibration=False, training=False), Kinds()


@pytest.fixture
def original(tmp_path: Path) -> Model:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 6, "intermediate_size": 1536, "hidden_size": 384}')
    return Model(tmp_path, classifier_signature())


def candidate(*steps: Step, **told: Any) -> Candidate:
    known = {"verdict": Verdict.ACCEPT, "reason": "good", "speedup": FASTER, "size_ratio": 3.9, "fidelity": FAITHFUL}
    return Candidate(name="whatever", steps=steps, **known | {"optimization_seconds": 7.0} | told)


def told(original: Model, found: Candidate, metric: Metric = Metric.FIDELITY, kinds: Kinds = ALL_DATA) -> Trial | None:
    return next(final_trials(original, kinds, metric, [found]), None)


def test_a_recipe_of_the_ladder_is_recognised_by_its_steps(original: Model) -> None:
    trial = told(original, candidate(EXPORT, Step(technique="dynamic_int8", parameters={"target_fidelity": None})))
    assert trial is not None
    assert trial.rung.parts == ("onnx", "int8")
    assert (trial.speedup, trial.size_ratio, trial.accepted, trial.seconds) == (FASTER, 3.9, True, 7.0)
    assert trial.loss is not None
    assert (trial.loss.estimate, trial.loss.low, trial.loss.high) == pytest.approx((0.03, 0.01, 0.05))


@pytest.mark.parametrize("kinds", [NO_DATA, ALL_DATA])
def test_the_default_recipes_are_on_the_ladder(original: Model, kinds: Kinds) -> None:
    recipes = [recipe for recipe in default_recipes(original.signature, kinds) if recipe.name != "bf16"]  # a rung where it is no emulation
    assert recipes
    assert all(told(original, candidate(*recipe.steps), kinds=kinds) for recipe in recipes)


def test_parameters_that_are_the_defaults_may_be_named(original: Model) -> None:
    trial = told(original, candidate(Step(technique="export_onnx", parameters={"opset": 17})))
    other = told(original, candidate(Step(technique="export_onnx", parameters={"opset": 18})))
    assert trial is not None
    assert other is None


def test_the_loss_is_of_the_metric(original: Model) -> None:
    lost = Interval(estimate=-0.02, low=-0.03, high=-0.01)
    half = Interval(estimate=0.5, low=0.4, high=0.6)
    quality = Quality(metric=Metric.ACCURACY, original=half, candidate=half, difference=lost, p_value=0.5, test="McNemar", examples=100)
    trial = told(original, candidate(EXPORT, qualities=(quality,)), Metric.ACCURACY)
    assert trial is not None
    assert trial.loss == Interval(estimate=0.02, low=0.01, high=0.03)


def test_what_was_not_measured_or_is_no_rung_tells_nothing(original: Model) -> None:
    infeasible = Candidate(name="x", steps=(EXPORT,), verdict=Verdict.INFEASIBLE, reason="does not export")
    assert told(original, infeasible) is None
    assert told(original, candidate(EXPORT, EXPORT)) is None
    assert told(original, candidate(EXPORT, verdict=Verdict.REJECT_NO_GAIN)) is not None


@pytest.mark.parametrize("config", ["", "no JSON", "[6]", '{"num_hidden_layers": "six"}', "\ufffe"])
def test_a_config_of_another_kind_ends_no_job(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    assert anatomy_of(tmp_path) == Anatomy()
    signature = classifier_signature().model_copy(update={"format": Format.ONNX})
    assert told(Model(tmp_path, signature), candidate(Step(technique="static_int8"))) is not None
