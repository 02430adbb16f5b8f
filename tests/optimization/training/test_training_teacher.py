import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from services.optimization.rows import TextRows, prepare
from services.optimization.techniques.technique import Model
from services.optimization.training import LossParameters, TrainingParameters, fit
from services.optimization.training.internals import OUTPUT, RELATIONS, matched_layers
from services.optimization.training.teacher import Teacher, TeacherOutputs
from services.repository.manifest import Task
from tests.optimization.training.tiny_models import ContextOf, Told, build, sentences

WANTED = (OUTPUT, "hidden.0", "hidden.1", *RELATIONS)
CPU = torch.device("cpu")


def ignore(_: float) -> None:
    pass


def outputs_of(model: Model, folder: Path, count: int = 40, **changes: Any) -> TeacherOutputs:
    examples = sentences(count)
    rows = prepare(model.folder, model.signature, examples)
    return dataclasses.replace(TeacherOutputs(model, rows, examples.digest, WANTED, folder, CPU), **changes)


def close(left: Teacher, right: Teacher, positions: list[int]) -> bool:
    found, wanted = left.answers(positions), right.answers(positions)
    assert set(found) == set(wanted)
    real = [len(row) for row in rows_of(left, right, positions)]
    return all(
        torch.allclose(found[name][index][:length], wanted[name][index][:length], atol=5e-3)
        for name in found
        for index, length in enumerate(real)
    )


def rows_of(_: Teacher, __: Teacher, positions: list[int]) -> list[list[str]]:
    return [["[CLS]", *sentences(40).texts[position].split(), "[SEP]"] for position in positions]


def forbid(*_: Any, **__: Any) -> None:
    raise AssertionError("the teacher was loaded again")


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.CAUSAL_LM])
def test_kept_answers_are_the_model_s(tmp_path: Path, task: Task) -> None:
    teacher = build(tmp_path / "teacher", task)
    heard: list[float] = []
    kept = outputs_of(teacher, tmp_path / "outputs").open(heard.append)
    live = outputs_of(teacher, tmp_path / "outputs", largest_bytes=0, examples_digest="other").open(ignore)
    assert (kept.kind, live.kind) == ("computed", "live")
    assert heard == sorted(heard)
    assert heard[-1] == 1
    assert close(kept, live, [3, 17, 39, 0])


def test_a_second_run_does_not_load_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = outputs_of(build(tmp_path / "teacher"), tmp_path / "outputs")
    first = outputs.open(ignore)
    monkeypatch.setattr("services.backends.torch.load_module", forbid)
    second = outputs.open(ignore)
    assert second.kind == "cached"
    assert all(torch.equal(second.answers([5, 2])[name], value) for name, value in first.answers([5, 2]).items())


def test_two_fits_share_one_pass_of_the_teacher(tmp_path: Path, context_of: ContextOf, told: Told) -> None:
    from services.backends.torch import load_module

    context = context_of(build(tmp_path / "teacher"), sentences(40))
    kinds = []
    for stage in ("first", "second"):
        made = build(tmp_path / stage, seed=1)
        student = load_module(made.folder, made.signature)
        kinds.append(fit(student, context, TrainingParameters(epochs=1), LossParameters(), stage=stage).teacher_outputs)
    assert kinds == ["computed", "cached"]
    assert len(list(context.outputs.iterdir())) == 1


@pytest.mark.parametrize("place", [10, -40, None])
def test_a_damaged_file_is_computed_again(tmp_path: Path, place: int | None) -> None:
    outputs = outputs_of(build(tmp_path / "teacher"), tmp_path / "outputs")
    outputs.open(ignore)
    (path,) = (tmp_path / "outputs").iterdir()
    content = bytearray(path.read_bytes())
    if place is None:
        content = content[: len(content) // 2]
    else:
        content[place] ^= 0xFF
    path.write_bytes(content)
    assert outputs.open(ignore).kind == "computed"
    assert outputs.open(ignore).kind == "cached"


def test_another_model_other_examples_and_other_cuts_have_files_of_their_own(tmp_path: Path) -> None:
    teacher = build(tmp_path / "teacher")
    outputs = outputs_of(teacher, tmp_path / "outputs")
    rows = outputs.rows
    assert isinstance(rows, TextRows)
    others = [
        outputs,
        dataclasses.replace(outputs, original=build(tmp_path / "other", seed=5)),
        dataclasses.replace(outputs, examples_digest="other"),
        dataclasses.replace(outputs, wanted=(OUTPUT,)),
        dataclasses.replace(outputs, rows=dataclasses.replace(rows, ids=[ids[:3] for ids in rows.ids])),
    ]
    assert [other.open(ignore).kind for other in others] == ["computed"] * 5
    assert len(list((tmp_path / "outputs").iterdir())) == 5


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [(2, 6, [(0, 2), (1, 5)]), (3, 3, [(0, 0), (1, 1), (2, 2)]), (1, 4, [(0, 3)]), (4, 2, [(0, 0), (1, 0), (2, 0), (3, 1)])],
)
def test_layers_are_matched_evenly_and_last_with_last(student: int, teacher: int, pairs: list[tuple[int, int]]) -> None:
    assert matched_layers(student, teacher) == pairs
