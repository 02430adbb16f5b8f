"""A teacher whose answers another machine has kept in the cache."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from services.optimization.rows import prepare
from services.optimization.techniques.technique import Model
from services.optimization.training import LossParameters, TrainingParameters, fit
from services.optimization.training.internals import OUTPUT, RELATIONS
from services.optimization.training.teacher import TeacherOutputs
from services.repository.manifest import Task
from tests.optimization.fake_cache import FakeCache, remembering
from tests.optimization.training.tiny_models import ContextOf, build, sentences

WANTED = (OUTPUT, "hidden.0", *RELATIONS)


def outputs_of(model: Model, folder: Path, cache: FakeCache, **changes: Any) -> TeacherOutputs:
    examples = sentences(40)
    rows = prepare(model.folder, model.signature, examples)
    made = TeacherOutputs(model, rows, examples.digest, WANTED, folder, torch.device("cpu"), remembered=remembering(cache))
    return dataclasses.replace(made, **changes)


def ignore(_: float) -> None:
    pass


def forbid(*_: Any, **__: Any) -> None:
    raise AssertionError("the teacher was loaded again")


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.CAUSAL_LM])
def test_a_second_machine_does_not_load_the_teacher(tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, cache = build(tmp_path / "teacher", task), FakeCache()
    first = outputs_of(teacher, tmp_path / "one", cache).open(ignore)
    monkeypatch.setattr("services.backends.torch.load_module", forbid)
    second = outputs_of(teacher, tmp_path / "two", cache).open(ignore)
    calls = cache.calls
    third = outputs_of(teacher, tmp_path / "two", cache).open(ignore)
    assert (first.kind, second.kind, third.kind) == ("computed", "cached", "cached")
    assert cache.calls == calls  # a file lay there by then
    wanted = first.answers([5, 2, 31])
    for found in (second.answers([5, 2, 31]), third.answers([5, 2, 31])):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("cutting", [-1, 40])
def test_damaged_answers_are_computed_again(tmp_path: Path, cutting: int) -> None:
    teacher, cache = build(tmp_path / "teacher"), FakeCache()
    outputs_of(teacher, tmp_path / "one", cache).open(ignore)
    cache.kept = {name: value[:cutting] for name, value in cache.kept.items()}
    assert outputs_of(teacher, tmp_path / "two", cache).open(ignore).kind == "computed"
    assert outputs_of(teacher, tmp_path / "three", cache).open(ignore).kind == "cached"


@pytest.mark.parametrize("fault_after", [0, 1])
def test_without_its_cache_a_machine_runs_the_teacher(tmp_path: Path, fault_after: int) -> None:
    teacher, cache = build(tmp_path / "teacher"), FakeCache()
    cache.fault_after = fault_after
    for folder in ("one", "two"):
        assert outputs_of(teacher, tmp_path / folder, cache).open(ignore).kind == "computed"


def test_what_runs_beside_the_student_is_not_kept(tmp_path: Path) -> None:
    cache = FakeCache()
    assert outputs_of(build(tmp_path / "teacher"), tmp_path / "one", cache, largest_bytes=0).open(ignore).kind == "live"
    assert cache.kept == {}


def test_another_student_and_other_epochs_learn_from_the_same_pass(tmp_path: Path, context_of: ContextOf) -> None:
    from services.backends.torch import load_module

    teacher, cache, kinds = build(tmp_path / "teacher"), FakeCache(), []
    for epochs in (1, 2):
        (tmp_path / str(epochs)).mkdir()
        context = context_of(teacher, sentences(40), outputs=tmp_path / str(epochs), original_remembered=remembering(cache))
        made = build(tmp_path / f"student-{epochs}", seed=epochs, num_hidden_layers=epochs)
        student = load_module(made.folder, made.signature)
        fitted = fit(student, context, TrainingParameters(epochs=epochs), LossParameters(), stage=f"stage-{epochs}")
        kinds.append(fitted.teacher_outputs)
    assert kinds == ["computed", "cached"]
