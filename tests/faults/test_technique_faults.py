"""What users get wrong, through whole executions: each recipe ends with its reason, and nothing half-made is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.corpus import digits
from benchmarks.sentences import labelled_sentences
from services.optimization.data import Data
from services.optimization.execution import Execution, execute
from services.optimization.plan import Plan, Teacher
from services.optimization.recipe import Gates, Recipe, Step
from services.optimization.report import Verdict
from services.optimization.spec import DataSource
from services.repository.dataset_manifest import DatasetFormat
from services.repository.manifest import Signature
from tests.models import classifier, classifier_signature, digits_resnet, digits_resnet_signature

QUICK = {"epochs": 1, "max_steps": 4, "max_tokens": 16, "batch_rows": 8}


def labelled(pairs: Sequence[tuple[str, str]]) -> Data:
    texts, labels = zip(*pairs, strict=True)
    return Data(source=DataSource(texts=texts, labels=labels))


def run(root: Path, original: Path, signature: Signature, recipes: dict[str, list[Step]], **plan: Any) -> Execution:
    (root / "scratch").mkdir(exist_ok=True)
    wanted = tuple(Recipe(name=name, steps=tuple(steps)) for name, steps in recipes.items())
    told = Plan(recipes=wanted, gates=Gates(min_gain=0, min_examples=1, max_loss=1), evaluation_seconds=0.2, **plan)
    return execute(told, original, signature, root / "scratch", root / "kept", lambda *_, **__: None)


def reasons(found: Execution) -> dict[str, str]:
    assert {candidate.verdict for candidate in found.report.candidates} == {Verdict.INFEASIBLE}
    return {candidate.name: candidate.reason for candidate in found.report.candidates}


def kept(root: Path) -> list[str]:
    """Folders of finished steps."""
    return sorted(path.parent.name for path in (root / "kept").glob("*/step.json"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("classifier") / "model", layers=1)


PAIRS = labelled_sentences(120, seed=4)


def test_data_that_cannot_teach_and_ratios_that_leave_nothing(tmp_path: Path, original: Path) -> None:
    one_class = [(text, "numpy") for text, _ in PAIRS[:60]]
    found = run(
        tmp_path,
        original,
        classifier_signature(),
        {
            "one-class": [Step(technique="distill", parameters={"training": QUICK, "losses": {"alpha": 0.5}})],
            "no-heads": [Step(technique="prune", parameters={"heads": 0.97, "recovery": None})],
            "no-layers": [Step(technique="prune", parameters={"layers": 1, "recovery": None})],
            "odd-heads": [Step(technique="distill", parameters={"heads": 7, "training": QUICK})],
        },
        training=labelled(one_class),
        evaluation=labelled(PAIRS[60:]),
    )
    told = reasons(found)
    assert "class" in told["one-class"]
    assert "head" in told["no-heads"]
    assert "layer" in told["no-layers"]
    assert "7" in told["odd-heads"]
    assert kept(tmp_path) == []


def test_a_calibration_set_of_one_row(tmp_path: Path, original: Path) -> None:
    recipes = {"static": [Step(technique="export_onnx"), Step(technique="static_int8")]}
    found = run(tmp_path, original, classifier_signature(), recipes, calibration=labelled(PAIRS[:1]), evaluation=labelled(PAIRS[60:]))
    assert "1 " in reasons(found)["static"]
    assert len(kept(tmp_path)) == 1  # the export, which is whole
    assert list((tmp_path / "kept" / "staging").iterdir()) == []


def test_a_teacher_that_cuts_texts_otherwise(tmp_path: Path, original: Path) -> None:
    """Its answers teach; its insides, which are by token, do not."""
    teacher = other_vocabulary(original, tmp_path / "teacher")
    found = run(
        tmp_path,
        original,
        classifier_signature(),
        {
            "answers": [Step(technique="distill", parameters={"training": QUICK})],
            "insides": [Step(technique="distill", parameters={"training": QUICK, "losses": {"hidden": 1.0}})],
        },
        teacher=Teacher(folder=teacher, signature=classifier_signature()),
        training=labelled(PAIRS[:60]),
        evaluation=labelled(PAIRS[60:]),
    )
    answers, insides = found.report.candidates
    assert answers.verdict is Verdict.ACCEPT, answers.reason
    assert insides.verdict is Verdict.INFEASIBLE
    assert "tokens" in insides.reason


def other_vocabulary(model: Path, folder: Path) -> Path:
    """The same model with two rows of its vocabulary exchanged, in the table and in the tokenizer."""
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    table = weights["bert.embeddings.word_embeddings.weight"]
    table[[2000, 3000]] = table[[3000, 2000]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = (next(word for word, index in vocabulary.items() if index == wanted) for wanted in (2000, 3000))
    vocabulary[first], vocabulary[second] = 3000, 2000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    """One broken sensor in the training data: finite numbers whose sums are not."""
    model = digits_resnet(tmp_path / "model")
    train, held_out = digits("train"), digits("held_out")
    broken = train.pixel_values[:64].copy()
    broken[5] = 3e38
    np.savez(tmp_path / "train.npz", pixel_values=broken, label=train.labels[:64])
    np.savez(tmp_path / "held_out.npz", pixel_values=held_out.pixel_values, label=held_out.labels)
    training = {"epochs": 1, "batch_rows": 64, "validation_share": 0.0}
    recipes = {"nan": [Step(technique="distill", parameters={"training": training, "losses": {"alpha": 0.0}})]}
    data = {
        name: Data(source=DataSource(dataset=f"{name}@1"), path=tmp_path / file, format=DatasetFormat.NPZ) for name, file in FILES.items()
    }
    told = reasons(run(tmp_path, model, digits_resnet_signature(), recipes, **data))
    assert "nan" in told["nan"]
    assert "step" in told["nan"]
    assert kept(tmp_path) == []


FILES = {"training": "train.npz", "evaluation": "held_out.npz"}
