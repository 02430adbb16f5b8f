"""Whole searches on a real model with one layer; nothing here depends on which recipe is faster."""

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.sentences import sentences
from services.optimization.advisor.advice import Advice
from services.optimization.advisor.experience import EXPERIENCE, Experience
from services.optimization.advisor.goal import Goal
from services.optimization.advisor.observation import Context
from services.optimization.advisor.scenarios import Scenario, Targets
from services.optimization.advisor.search import HOPELESS
from services.optimization.data import Data
from services.optimization.execution import Execution, execute
from services.optimization.folder import size_bytes
from services.optimization.plan import Plan
from services.optimization.recipe import Gates, Objective, Recipe, Step
from services.optimization.report import Verdict
from services.optimization.spec import DataSource
from tests.models import minilm_signature, shallow_minilm

TEXTS = sentences(56, seed=1)


def of_texts(texts: list[str]) -> Data:
    return Data(source=DataSource(texts=tuple(texts)))


def run(root: Path, goal: Goal, told: list[Advice] | None = None, seconds: float | None = None) -> Execution:
    plan = Plan(
        goal=goal,
        evaluation=of_texts(TEXTS[:40]),
        calibration=of_texts(TEXTS[40:]),
        gates=Gates(min_fidelity=0.9, min_gain=0, min_examples=40),
        objective=Objective.SIZE,
        evaluation_seconds=1.0,
    )
    (root / "scratch").mkdir(exist_ok=True)
    advices = [] if told is None else told
    return execute(
        plan,
        root / "original",
        minilm_signature(),
        root / "scratch",
        root / "kept",
        lambda *_, **__: None,
        deadline=None if seconds is None else time.monotonic() + seconds,
        told=advices.append,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    shallow_minilm(folder / "original")
    return folder


def test_a_size_is_reached_and_what_was_tried_is_told(root: Path) -> None:
    half = size_bytes(root / "original") // 2
    told: list[Advice] = []
    found = run(root, Goal(scenario=Scenario.RESOURCE, targets=Targets(max_size_bytes=half)), told)
    advice = Advice.model_validate(found.report.advice)
    assert advice.is_target_met
    assert [len(each.trials) for each in told] == list(range(1, len(advice.trials) + 1))
    assert not any(each.is_target_met for each in told)
    chosen = next(candidate for candidate in found.report.candidates if candidate.name == found.report.chosen)
    assert chosen.verdict is Verdict.ACCEPT
    assert chosen.measurement is not None
    assert chosen.measurement.size_bytes <= half
    assert found.chosen_folder is not None
    assert size_bytes(found.chosen_folder) == chosen.measurement.size_bytes


@pytest.mark.parametrize("seconds", [None, 0.1], ids=["in time", "late"])
def test_what_cannot_be_reached_ends_with_reasons(root: Path, seconds: float | None) -> None:
    """Late or not: nothing was to be made, so that no time was lacking."""
    found = run(root, Goal(targets=Targets(min_speedup=500.0)), seconds=seconds)
    advice = Advice.model_validate(found.report.advice)
    assert not advice.is_target_met
    assert "likely" in advice.stopped_because
    assert found.report.chosen == ""
    assert {"onnx", "onnx-int8"} <= {skipped.name for skipped in advice.skipped}
    assert all(skipped.chance < HOPELESS and skipped.basis for skipped in advice.skipped)


def test_what_a_job_of_recipes_measured_is_known_to_later_searches(tmp_path: Path) -> None:
    shallow_minilm(tmp_path / "original")
    (tmp_path / "scratch").mkdir()
    recipes = (Recipe(name="mine", steps=(Step(technique="export_onnx"),)),)
    plan = Plan(recipes=recipes, evaluation=of_texts(TEXTS[:40]), gates=Gates(min_examples=40), evaluation_seconds=0.5)
    found = execute(plan, tmp_path / "original", minilm_signature(), tmp_path / "scratch", tmp_path / "kept", lambda *_, **__: None)
    [known] = Experience(tmp_path / "kept" / EXPERIENCE, minilm_signature(), Context()).evidence()
    assert known.parts == ("onnx",)
    assert found.report.candidates[0].speedup is not None
    assert known.speedup == found.report.candidates[0].speedup.estimate
    assert (known.context.layers, known.context.hidden_size, known.context.metric) == (1, 384, "FIDELITY")
    assert known.context.characters > 10
    assert known.loss is not None


def test_a_repeated_search_makes_nothing_again(root: Path) -> None:
    goal = Goal(scenario=Scenario.RESOURCE, targets=Targets(max_size_bytes=size_bytes(root / "original") // 2))
    made: list[Any] = []
    first = Advice.model_validate(run(root, goal).report.advice)
    kept = {path.name for path in (root / "kept").iterdir()}
    made.append(Advice.model_validate(run(root, goal).report.advice))
    assert {path.name for path in (root / "kept").iterdir()} == kept
    assert made[0].front == first.front
