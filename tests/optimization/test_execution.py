"""Whole executions on a real model with one layer; nothing here depends on which candidate is faster."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.sentences import labelled_sentences, sentences
from services import backends
from services.optimization.data import Data
from services.optimization.evaluation.footprint import Footprint
from services.optimization.evaluation.latency import MAX_ROUNDS
from services.optimization.evaluation.metrics import Metric
from services.optimization.execution import Execution, execute
from services.optimization.failures import BudgetExceeded, NotEnoughData, Toolchain
from services.optimization.plan import Plan
from services.optimization.recipe import Gates, Objective, Recipe, Step
from services.optimization.report import Report, Verdict
from services.optimization.spec import DataSource
from services.optimization.uploads.inspection import inspect_folder
from services.repository.dataset_manifest import DatasetFormat
from services.repository.manifest import Format, Signature, Task, TensorSpec
from tests.models import classifier, classifier_signature, minilm_signature, shallow_minilm

TEXTS = sentences(56, seed=1)
EXPORT = Step(technique="export_onnx")
INT8 = Step(technique="dynamic_int8")


def ignore(*_: Any, **__: Any) -> None:
    pass


def of_texts(texts: Sequence[str], labels: Sequence[str] = ()) -> Data:
    return Data(source=DataSource(texts=tuple(texts), labels=tuple(labels)))


def plan(*recipes: Recipe, **changes: object) -> Plan:
    fields = {
        "recipes": recipes,
        "evaluation": of_texts(TEXTS[:40]),
        "calibration": of_texts(TEXTS[40:]),
        "gates": Gates(min_fidelity=0.9, min_gain=0, min_examples=40),
        "objective": Objective.SIZE,
        "evaluation_seconds": 1.0,
    }
    return Plan.model_validate(fields | changes)


class Job:
    """One original, one kept_steps; remembers what was told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.original = shallow_minilm(root / "original")
        self.told: list[tuple[str, float, str]] = []
        (root / "scratch").mkdir()

    def run(self, plan: Plan, deadline: float | None = None) -> Execution:
        self.told.clear()
        tell = lambda *event, **_: self.told.append(event)  # noqa: E731
        return execute(plan, self.original, minilm_signature(), self.root / "scratch", self.root / "kept", tell, deadline)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def done(job: Job) -> Execution:
    starved = Recipe(name="starved", steps=(EXPORT, Step(technique="dynamic_int8", parameters={"target_fidelity": 0.9999})))
    recipes = (Recipe(name="onnx", steps=(EXPORT,)), Recipe(name="int8", steps=(EXPORT, INT8)), starved)
    execution = job.run(plan(*recipes))
    assert [fraction for _, fraction, _ in job.told] == sorted(fraction for _, fraction, _ in job.told)
    assert job.told[-1][1] == 1
    assert sum("reusing" in message for _, _, message in job.told) == 2  # the export that the first recipe made
    return execution


def test_the_smallest_accepted_is_chosen_and_runs(done: Execution) -> None:
    assert done.report.chosen == "int8"
    assert done.chosen_folder is not None
    assert done.chosen_signature is not None
    assert inspect_folder(done.chosen_folder).outputs == done.chosen_signature.outputs
    backends.load(done.chosen_folder, done.chosen_signature, threads=1).close()


def test_measurements_stand_beside_the_originals(done: Execution) -> None:
    original = done.report.original
    for candidate in done.report.candidates:
        found = candidate.measurement
        assert found is not None
        assert [(w.batch_rows, w.tokens) for w in found.workloads] == [(w.batch_rows, w.tokens) for w in original.workloads]
        assert candidate.size_ratio == pytest.approx(original.size_bytes / found.size_bytes)
        assert found.load_seconds > 0
        assert found.memory_bytes > found.size_bytes / 4
        assert all(0 < w.p50_ms <= w.p90_ms <= w.p99_ms for w in found.workloads)
        assert candidate.speedup is not None
        assert candidate.speedup.low <= candidate.speedup.estimate <= candidate.speedup.high


def test_export_is_exact_and_int8_is_not(done: Execution) -> None:
    exported, quantized, _ = done.report.candidates
    assert exported.fidelity is not None
    assert quantized.fidelity is not None
    assert exported.min_fidelity > 0.9999
    assert 0.9 < quantized.min_fidelity < 0.99999
    assert quantized.size_ratio > 3


def test_the_search_excludes_until_its_target_or_its_share(done: Execution) -> None:
    _, quantized, starved = (candidate.notes["steps"][-1] for candidate in done.report.candidates if candidate.notes)
    assert starved["excluded"]
    assert set(starved["excluded"]) <= set(starved["sensitivity"])
    assert starved["calibration_fidelity"] >= quantized["calibration_fidelity"]
    assert len(starved["excluded"]) == max(trial["excluded"] for trial in starved["trials"])


def test_report_survives_json(done: Execution) -> None:
    assert Report.model_validate_json(done.report.model_dump_json()) == done.report


@pytest.fixture(scope="module")
def second(job: Job, done: Execution) -> Execution:
    """After `done`, with other calibration texts, too few of them, and a gate that INT8 cannot hold."""
    unsearched = Step(technique="dynamic_int8", parameters={"target_fidelity": None})
    recipes = (Recipe(name="few", steps=(EXPORT, INT8)), Recipe(name="unsearched", steps=(EXPORT, unsearched)))
    return job.run(plan(*recipes, calibration=of_texts(TEXTS[-3:]), gates=Gates(min_fidelity=1.0, min_examples=40)))


def test_a_later_job_reuses_what_does_not_depend_on_its_texts(job: Job, second: Execution) -> None:
    assert [message for _, _, message in job.told if "reusing" in message] == [
        "few: export_onnx: reusing the kept result",
        "unsearched: export_onnx: reusing the kept result",
    ]
    assert list((job.root / "scratch").iterdir()) == []


def test_an_infeasible_recipe_leaves_the_others_their_chance(second: Execution) -> None:
    few, unsearched = second.report.candidates
    assert few.verdict is Verdict.INFEASIBLE
    assert "3 calibration examples" in few.reason
    assert few.measurement is None
    assert unsearched.measurement is not None
    assert unsearched.notes["steps"][-1]["excluded"] == []


def test_nothing_accepted_nothing_chosen(second: Execution) -> None:
    assert second.report.candidates[1].verdict is Verdict.REJECT_ACCURACY
    assert (second.report.chosen, second.chosen_folder, second.chosen_signature) == ("", None, None)


def test_classifier_by_agreement(tmp_path: Path) -> None:
    original = classifier(tmp_path / "classifier", layers=1)
    (tmp_path / "scratch").mkdir()
    recipes = (Recipe(name="bf16", steps=(Step(technique="bf16"),)),)
    told: list[str] = []
    found = execute(
        plan(*recipes, gates=Gates(min_fidelity=0.5, min_gain=0, min_examples=40)),
        original,
        classifier_signature(),
        tmp_path / "scratch",
        tmp_path / "kept",
        lambda stage, *_, **__: told.append(stage),
    )
    [candidate] = found.report.candidates
    assert candidate.verdict is Verdict.ACCEPT
    assert candidate.fidelity is not None
    assert candidate.fidelity.estimate >= 0.95
    assert 0 < candidate.notes["fidelity"]["mean_probability_overlap"] < 1
    assert candidate.size_ratio > 1.9
    assert found.chosen_signature is not None
    assert found.chosen_signature.dtype == "bfloat16"


def test_a_labelled_classifier_by_its_accuracy(tmp_path: Path) -> None:
    original = classifier(tmp_path / "classifier", layers=1)
    (tmp_path / "scratch").mkdir()
    pairs = labelled_sentences(300, seed=3)[-60:]
    labelled = of_texts([text for text, _ in pairs], [label for _, label in pairs])
    held = plan(
        Recipe(name="onnx", steps=(EXPORT,)),
        evaluation=labelled,
        calibration=Data(),
        gates=Gates(max_loss=0.2, min_gain=0, min_examples=60),
    )
    found = execute(held, original, classifier_signature(), tmp_path / "scratch", tmp_path / "kept", ignore)
    [candidate] = found.report.candidates
    assert found.report.metric is Metric.ACCURACY
    assert found.report.data["evaluation"]["labelled"]
    assert candidate.verdict is Verdict.ACCEPT
    assert [quality.metric for quality in candidate.qualities] == [Metric.ACCURACY, Metric.MACRO_F1]
    assert candidate.qualities[0].difference.estimate == 0
    assert candidate.qualities[0].original.estimate > 0.4


def test_a_tensor_model_on_arrays(tmp_path: Path) -> None:
    signature = tensor_model(tmp_path)
    (tmp_path / "scratch").mkdir()
    values = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=values)
    rows = Data(source=DataSource(dataset="rows@1"), path=tmp_path / "rows.npz", format=DatasetFormat.NPZ)
    quantize = Step(technique="dynamic_int8", parameters={"target_fidelity": None})
    held = plan(Recipe(name="int8", steps=(quantize,)), evaluation=rows, calibration=Data())
    found = execute(held, tmp_path / "model", signature, tmp_path / "scratch", tmp_path / "kept", ignore)
    [candidate] = found.report.candidates
    assert candidate.fidelity is not None
    assert 0.9 < candidate.fidelity.estimate < 1
    assert [(w.batch_rows, w.tokens) for w in found.report.original.workloads] == [(1, 0), (8, 0), (32, 0)]


def tensor_model(root: Path) -> Signature:
    """One weight product of a 16-wide row; its signature."""
    weight = onnx.numpy_helper.from_array(np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size]) for name, size in (("x", 16), ("y", 8)))
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], "g", [x], [y], [weight])
    (root / "model").mkdir()
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), root / "model" / "model.onnx")
    specs = [TensorSpec(name=name, datatype="FP32", shape=(-1, size)) for name, size in (("x", 16), ("y", 8))]
    return Signature(task=Task.TENSOR, format=Format.ONNX, inputs=(specs[0],), outputs=(specs[1],))


def test_nothing_is_published_unmeasured(tmp_path: Path) -> None:
    nothing = plan(Recipe(name="onnx", steps=(EXPORT,)), evaluation=Data())
    with pytest.raises(NotEnoughData, match="evaluation"):
        execute(nothing, tmp_path, minilm_signature(), tmp_path, tmp_path / "kept", ignore)


def test_calibration_and_evaluation_are_disjoint(tmp_path: Path) -> None:
    shared = plan(Recipe(name="onnx", steps=(EXPORT,)), calibration=of_texts(["b", "a"]), evaluation=of_texts(["a"]))
    with pytest.raises(NotEnoughData, match=r"calibration: .*'a'"):
        execute(shared, tmp_path, minilm_signature(), tmp_path, tmp_path / "kept", ignore)


def test_a_job_whose_time_is_over_measures_what_it_made(job: Job, done: Execution) -> None:
    """The kept export takes no time, so it is there; what would have to be made is not."""
    fresh = Step(technique="export_onnx", parameters={"opset": 16})
    recipes = (Recipe(name="kept", steps=(EXPORT,)), Recipe(name="fresh", steps=(fresh,)))
    with pytest.raises(BudgetExceeded):
        job.run(plan(*recipes[1:]), deadline=0.0)
    told = job.run(plan(*recipes, evaluation_seconds=0.5), deadline=0.0)
    kept, late = told.report.candidates
    assert (kept.verdict, late.verdict) == (Verdict.ACCEPT, Verdict.INFEASIBLE)
    assert "time was over" in late.reason


def test_little_time_and_one_candidate_that_cannot_be_measured(job: Job, done: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency takes a part of what is left, not what it would like; what fails last costs the others nothing."""

    def measure(folder: Path, signature: Signature, *_: object) -> Footprint:
        if signature.dtype == "int8":
            raise Toolchain("measuring memory failed: killed")
        return Footprint(load_seconds=0.1, memory_bytes=1)

    monkeypatch.setattr("services.optimization.evaluation.footprint.measure", measure)
    recipes = (Recipe(name="int8", steps=(EXPORT, INT8)), Recipe(name="onnx", steps=(EXPORT,)))
    found = job.run(plan(*recipes, evaluation_seconds=3600.0), deadline=time.monotonic() + 4).report
    assert [candidate.verdict for candidate in found.candidates] == [Verdict.INFEASIBLE, Verdict.ACCEPT]
    assert "measuring memory" in found.candidates[0].reason
    assert found.original.workloads[-1].samples < MAX_ROUNDS
