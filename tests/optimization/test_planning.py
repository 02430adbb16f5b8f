"""Estimates: what was kept costs nothing, what was measured scales, what is assumed says so."""

from pathlib import Path

import pytest

from services.optimization.history import History
from services.optimization.planning import Refused, estimate, resolve
from services.optimization.recipe import Recipe, Step
from services.optimization.spec import DataSource, Spec
from services.optimization.techniques import Model, find
from services.repository.store import Repository
from tests.models import minilm, minilm_signature

TEXTS = tuple(f"text number {index}" for index in range(20))
SPEC = Spec(source="m@1", recipes=(Recipe(name="bf16", steps=(Step(technique="bf16"),)),), evaluation=DataSource(texts=TEXTS))


def test_an_estimate_tells_its_basis_and_what_will_disappoint(tmp_path: Path) -> None:
    found = estimate(SPEC, Model(minilm(), minilm_signature()), Repository(tmp_path), tmp_path / "kept", evaluation_seconds=60)
    [[step]] = [recipe.steps for recipe in found.recipes]
    assert (step.technique, step.basis, step.source_format, step.target_format) == ("bf16", "assumed", "huggingface", "huggingface")
    assert step.seconds > 0
    assert found.total_seconds > found.evaluation_seconds > 60
    assert any("20 evaluation examples are fewer than 100" in line for line in found.warnings)


def test_a_plan_tells_of_texts_that_are_no_held_out_ones(tmp_path: Path) -> None:
    shared = SPEC.model_copy(update={"calibration": DataSource(texts=TEXTS[:1])})
    with pytest.raises(Refused, match="'text number 0'") as caught:
        estimate(shared, Model(minilm(), minilm_signature()), Repository(tmp_path), tmp_path / "kept", evaluation_seconds=60)
    assert caught.value.field == "calibration"


def test_history_scales_with_what_there_is_to_do(tmp_path: Path) -> None:
    history, bf16 = History(tmp_path / "history.jsonl"), find("bf16")
    parameters = bf16.parameters()
    assumed, basis = history.estimate(bf16, parameters, 100, 0)
    assert basis == "assumed"
    for _ in range(3):
        history.add("bf16", parameters.model_dump(mode="json"), 100, 0, 3 * assumed)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"technique": "bf')  # torn by a kill
    assert history.estimate(bf16, parameters, 100, 0) == (pytest.approx(3 * assumed), "measured")
    assert history.estimate(bf16, parameters, 200, 0)[0] > 3 * assumed


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"evaluation": DataSource()}, "evaluation"),
        ({"evaluation": DataSource(texts=("a", "a"))}, "evaluation.texts[1]"),
        ({"calibration": DataSource(texts=TEXTS[:1])}, "evaluation.texts[0]"),
        ({"metric": "ACCURACY"}, "metric"),
        ({"recipes": (Recipe(name="r", steps=(Step(technique="dynamic_int8"),)),)}, "recipes[0].steps[0].technique"),
    ],
)
def test_what_cannot_become_a_job_is_refused_by_field(tmp_path: Path, change: dict[str, object], field: str) -> None:
    with pytest.raises(Refused) as caught:
        resolve(SPEC.model_copy(update=change), minilm_signature(), Repository(tmp_path))
    assert caught.value.field == field
