"""Every other task through a whole execution: a real model trained from data at hand, its metric, its gates."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import TAGS, digits, prose, source_lines
from services.optimization.data import Data
from services.optimization.evaluation.metrics import Metric
from services.optimization.execution import Execution, execute
from services.optimization.plan import Plan
from services.optimization.recipe import Gates, Recipe, Step
from services.optimization.report import Candidate, Verdict
from services.optimization.spec import DataSource
from services.repository.dataset_manifest import DatasetFormat
from services.repository.manifest import Signature
from tests.models import (
    causal_lm,
    causal_lm_signature,
    digits_vit,
    digits_vit_signature,
    token_classifier,
    token_classifier_signature,
)

EXPORT = Step(technique="export_onnx")
INT8 = Step(technique="dynamic_int8", parameters={"target_fidelity": None})


def run(root: Path, original: Path, signature: Signature, evaluation: Data, **gates: Any) -> Execution:
    (root / "scratch").mkdir()
    recipes = (Recipe(name="onnx", steps=(EXPORT,)), Recipe(name="int8", steps=(EXPORT, INT8)))
    held = Gates(min_gain=0, min_examples=20, **gates)
    plan = Plan(recipes=recipes, evaluation=evaluation, gates=held, evaluation_seconds=0.5)
    return execute(plan, original, signature, root / "scratch", root / "kept", lambda *_, **__: None)


def accepted(found: Execution, metric: Metric) -> tuple[Candidate, Candidate]:
    """The exact export and INT8, both measured by the metric; the first must have changed nothing."""
    exact, quantized = found.report.candidates
    assert found.report.metric is metric
    assert exact.verdict is Verdict.ACCEPT, exact.reason
    assert quantized.measurement is not None, quantized.reason
    assert exact.qualities[0].metric in (metric, Metric.ACCURACY)
    assert abs(exact.qualities[0].difference.estimate) < 1e-3
    return exact, quantized


def test_images_by_accuracy(tmp_path: Path) -> None:
    images = digits("held_out")
    np.savez(tmp_path / "d.npz", pixel_values=images.pixel_values, label=images.labels)
    data = Data(source=DataSource(dataset="d@1"), path=tmp_path / "d.npz", format=DatasetFormat.NPZ)
    exact, quantized = accepted(run(tmp_path, digits_vit(tmp_path / "m"), digits_vit_signature(), data), Metric.ACCURACY)
    assert exact.qualities[0].original.estimate > 0.9
    assert quantized.qualities[0].candidate.estimate > 0.8
    assert quantized.measurement is not None
    assert {workload.tokens for workload in quantized.measurement.workloads} == {0}


def test_tokens_by_macro_f1(tmp_path: Path) -> None:
    lines = source_lines(40, "held_out")
    rows = [{"tokens": words, "labels": [TAGS[tag] for tag in tags]} for words, tags in zip(lines.words, lines.tags, strict=True)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(source=DataSource(dataset="d@1"), path=tmp_path / "d.jsonl", format=DatasetFormat.JSONL)
    exact, _ = accepted(run(tmp_path, token_classifier(tmp_path / "m"), token_classifier_signature(), data, max_loss=0.1), Metric.MACRO_F1)
    assert [quality.metric for quality in exact.qualities] == [Metric.ACCURACY, Metric.MACRO_F1]
    assert exact.qualities[0].original.estimate > 0.8
    assert exact.qualities[0].test == "paired bootstrap"
    assert exact.fidelity is not None
    assert exact.fidelity.estimate > 0.999


def test_language_models_by_perplexity(tmp_path: Path) -> None:
    data = Data(source=DataSource(texts=tuple(prose(40, "held_out"))))
    exact, quantized = accepted(run(tmp_path, causal_lm(tmp_path / "m"), causal_lm_signature(), data, max_loss=0.2), Metric.PERPLEXITY)
    assert 1 < exact.qualities[0].original.estimate < 400
    assert quantized.qualities[0].candidate.estimate > 1
