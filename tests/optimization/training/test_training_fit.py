"""Whole runs on models of a few thousand weights."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.backends.torch import load_module
from services.optimization.examples import Examples
from services.optimization.failures import BadModel, BudgetExceeded, Diverged, NotEnoughData, Toolchain, UnsupportedOperator
from services.optimization.techniques.technique import Context, Model
from services.optimization.training import Fitted, LossParameters, TrainingParameters, fit
from services.repository.manifest import Task
from tests.optimization.training.tiny_models import LABELS, WORDS, ContextOf, Told, build, sentences, write_tokenizer

QUICK = TrainingParameters(epochs=2, batch_rows=8, learning_rate=3e-3, checkpoint_seconds=0)
BY_LABELS = LossParameters(alpha=0, labels=True)


def student_of(folder: Path, task: Task = Task.CLASSIFICATION, **config: Any) -> Any:
    """Another random model than the teacher, as a loaded module."""
    made = build(folder, task, **({"seed": 1} | config))
    return load_module(made.folder, made.signature)


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def train(student: Any, context: Context, training: TrainingParameters = QUICK, losses: LossParameters = BY_LABELS, **given: Any) -> Fitted:
    return fit(student, context, training, losses, stage="test", **given)


class Killed(Exception):
    """Stands for the end of the process."""


def killing_after(steps: int) -> Callable[[], None]:
    counter = itertools.count(1)

    def after_step() -> None:
        if next(counter) > steps:
            raise Killed

    return after_step


# -- learning -----------------------------------------------------------------------------------------------------------------


def test_labels_are_learnt_and_the_notes_tell_it(tmp_path: Path, context_of: ContextOf) -> None:
    context = context_of(build(tmp_path / "teacher"), sentences(300))
    training = TrainingParameters(epochs=8, batch_rows=16, learning_rate=1e-2, validation_share=0.2)
    notes = train(student_of(tmp_path / "student"), context, training).notes()
    losses = [value for _, value in notes["curves"]["validation_loss"]]
    assert notes["best"]["validation_loss"] == min(losses) < 0.7 * losses[0]
    assert (notes["examples"], notes["held_out"], notes["labelled"], notes["teacher_outputs"]) == (300, 60, True, "unused")
    assert notes["stopped"]
    assert notes["devices"] == ["cpu"]
    assert len(notes["curves"]["loss"]) == min(200, notes["steps"])
    assert json.loads(json.dumps(notes)) == notes


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.CAUSAL_LM, Task.EMBEDDING])
@pytest.mark.parametrize("inside", [0.0, 0.5])
def test_a_student_comes_nearer_to_its_teacher(tmp_path: Path, context_of: ContextOf, task: Task, inside: float) -> None:
    examples = dataclasses.replace(sentences(80), labels=None)
    if task is Task.TOKEN_CLASSIFICATION:
        examples = Examples(words=tuple(tuple(text.split()) for text in examples.texts))
    context = context_of(build(tmp_path / "teacher", task), examples)
    losses = LossParameters(alpha=1, hidden=inside, attention_relation=inside)
    notes = train(student_of(tmp_path / "student", task), context, QUICK, losses).notes()
    first, *_, last = [value for _, value in notes["curves"]["validation_loss"]]
    assert last < 0.9 * first
    assert notes["teacher_outputs"] == "computed"


def test_word_labels_are_learnt_where_they_count(tmp_path: Path, context_of: ContextOf) -> None:
    texts = [text.split() for text in sentences(150).texts]
    labels = tuple(np.array([int(word[1:]) % 3 for word in words], np.int64) for words in texts)
    examples = Examples(words=tuple(map(tuple, texts)), word_labels=labels)
    context = context_of(build(tmp_path / "teacher", Task.TOKEN_CLASSIFICATION), examples)
    training = QUICK.model_copy(update={"epochs": 3, "learning_rate": 2e-2})
    fitted = train(student_of(tmp_path / "student", Task.TOKEN_CLASSIFICATION), context, training)
    assert fitted.best is not None
    assert fitted.best[1] < 0.5 < math.log(3)


def test_a_narrower_student_learns_hidden_states_through_a_projection(tmp_path: Path, context_of: ContextOf) -> None:
    context = context_of(build(tmp_path / "teacher"), sentences(60))
    student = student_of(tmp_path / "student", hidden_size=8, intermediate_size=16, num_hidden_layers=1)
    before = set(weights(student))
    fitted = train(student, context, QUICK, LossParameters(hidden=1, attention_relation=1))
    assert fitted.best is not None
    assert fitted.best[0] > 0
    assert set(weights(student)) == before


def test_the_student_is_left_in_evaluation_mode_with_gradients_as_they_were(tmp_path: Path, context_of: ContextOf) -> None:
    student = student_of(tmp_path / "student")
    embeddings = student.model.bert.embeddings
    before = weights(embeddings)
    train(student, context_of(build(tmp_path / "teacher"), sentences(40)), QUICK.model_copy(update={"freeze_embeddings": True}))
    assert not student.training
    assert same(before, weights(embeddings))
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_the_hook_follows_every_step(tmp_path: Path, context_of: ContextOf) -> None:
    student = student_of(tmp_path / "student")
    steps: list[int] = []

    def hook() -> None:
        steps.append(len(steps))
        student.model.classifier.weight.data[0] = 0

    fitted = train(student, context_of(build(tmp_path / "teacher"), sentences(40)), after_step=hook)
    assert len(steps) == fitted.steps
    assert not student.model.classifier.weight[0].any()


def test_the_job_s_random_numbers_go_on_as_if_nothing_was_drawn(tmp_path: Path, context_of: ContextOf) -> None:
    student, context = student_of(tmp_path / "student", hidden_dropout_prob=0.3), context_of(build(tmp_path / "teacher"), sentences(30))
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train(student, context)
    assert torch.equal(torch.rand(3), wanted)


# -- laws ---------------------------------------------------------------------------------------------------------------------


def test_accumulated_batches_train_as_the_large_batch(tmp_path: Path, context_of: ContextOf) -> None:
    context = context_of(build(tmp_path / "teacher"), sentences(42))
    found = []
    for batch, accumulation in ((12, 1), (5, 3), (5, 2), (3, 4)):  # the last steps of an epoch are uneven
        training = QUICK.model_copy(update={"batch_rows": batch, "gradient_accumulation": accumulation, "validation_share": 0})
        curves = fit(
            student_of(tmp_path / f"{batch}-{accumulation}"), context, training, LossParameters(), stage=f"{batch}-{accumulation}"
        ).curves
        found.append({name: [value for _, value in curves[name]] for name in ("loss", "gradient_norm")})
    large, *others, accumulated = found
    assert accumulated == {name: pytest.approx(values, rel=1e-3) for name, values in large.items()}
    assert all(other != {name: pytest.approx(values, rel=1e-3) for name, values in large.items()} for other in others)


def test_one_seed_trains_one_way_and_another_another(tmp_path: Path, context_of: ContextOf) -> None:
    found = []
    for index, seed in enumerate((0, 0, 1)):
        context = context_of(build(tmp_path / "teacher"), sentences(40), seed=seed)
        student = student_of(tmp_path / f"student{index}", hidden_dropout_prob=0.2)
        fit(student, context, QUICK, BY_LABELS, stage=str(index))
        found.append(weights(student))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


@pytest.mark.parametrize("killed_after", [1, 7, 9, 15])
def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path: Path, context_of: ContextOf, told: Told, killed_after: int) -> None:
    teacher, losses = build(tmp_path / "teacher"), LossParameters(alpha=0.5, hidden=0.1)
    context = context_of(teacher, sentences(70))
    make = lambda name: student_of(tmp_path / name, hidden_dropout_prob=0.2, hidden_size=8, intermediate_size=16)  # noqa: E731
    whole, resumed = make("whole"), make("resumed")
    expected = fit(whole, context, QUICK, losses, stage="whole")
    with pytest.raises(Killed):
        train(make("killed"), context, QUICK, losses, after_step=killing_after(killed_after))
    told.clear()
    fitted = train(resumed, context, QUICK, losses)
    assert same(weights(whole), weights(resumed))
    assert fitted.curves == expected.curves
    assert (fitted.steps, fitted.best, fitted.stopped) == (expected.steps, expected.best, expected.stopped)
    assert any(f"going on from the checkpoint at step {killed_after} " in message for _, message, _, _ in told)


def test_a_finished_run_is_not_repeated(tmp_path: Path, context_of: ContextOf) -> None:
    context = context_of(build(tmp_path / "teacher"), sentences(40))
    first, second = student_of(tmp_path / "first"), student_of(tmp_path / "second")
    train(first, context)
    train(second, context, after_step=killing_after(0))
    assert same(weights(first), weights(second))


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path: Path, context_of: ContextOf) -> None:
    context = context_of(build(tmp_path / "teacher"), sentences(40))
    train(student_of(tmp_path / "first"), context)
    with pytest.raises(Killed):
        train(student_of(tmp_path / "second"), context, QUICK.model_copy(update={"learning_rate": 1e-3}), after_step=killing_after(0))


@pytest.mark.parametrize("damage", [b"", b"\x00" * 64, b"{}"], ids=["empty", "zeros", "other"])
def test_a_damaged_checkpoint_counts_as_none(tmp_path: Path, context_of: ContextOf, damage: bytes) -> None:
    context = context_of(build(tmp_path / "teacher"), sentences(40))
    first, second = student_of(tmp_path / "first"), student_of(tmp_path / "second")
    train(first, context)
    (path,) = context.checkpoints.glob("test/*")
    path.write_bytes(damage)
    train(second, context)
    assert same(weights(first), weights(second))


# -- stopping -----------------------------------------------------------------------------------------------------------------


def test_patience_stops_and_the_best_weights_are_given_back(tmp_path: Path, context_of: ContextOf) -> None:
    student = student_of(tmp_path / "student")
    context = context_of(build(tmp_path / "teacher"), sentences(60))
    seen: dict[int, dict[str, torch.Tensor]] = {0: weights(student)}
    training = QUICK.model_copy(
        update={"epochs": 50, "learning_rate": 0.05, "evaluations_per_epoch": 2, "patience": 2, "schedule": "constant"}
    )
    fitted = train(student, context, training, after_step=lambda: seen.update({len(seen): weights(student)}))
    assert fitted.stopped == "no better validation loss in 2 evaluations"
    assert fitted.best is not None
    assert fitted.best[0] < fitted.steps < 50 * 7
    assert same(weights(student), seen[fitted.best[0]])
    assert not same(weights(student), seen[fitted.steps])


def test_a_student_that_cannot_improve_is_left_as_it_was(tmp_path: Path, context_of: ContextOf) -> None:
    teacher = build(tmp_path / "teacher")
    student = load_module(teacher.folder, teacher.signature)
    before = weights(student)
    fitted = train(student, context_of(teacher, sentences(60)), QUICK, LossParameters(alpha=1, labels=False))
    assert fitted.best is not None
    assert fitted.best[0] == 0
    assert same(weights(student), before)


def test_max_steps_stops(tmp_path: Path, context_of: ContextOf) -> None:
    context = context_of(build(tmp_path / "teacher"), sentences(60))
    fitted = train(student_of(tmp_path / "student"), context, QUICK.model_copy(update={"max_steps": 3}))
    assert (fitted.steps, fitted.stopped) == (3, "max_steps reached")


def test_without_validation_the_last_weights_stay(tmp_path: Path, context_of: ContextOf) -> None:
    context = context_of(build(tmp_path / "teacher"), sentences(30))
    fitted = train(student_of(tmp_path / "student"), context, QUICK.model_copy(update={"validation_share": 0}))
    assert (fitted.best, fitted.held_out, fitted.stopped) == (None, 0, "all epochs done")
    assert "no example was held out: the last weights are kept" in fitted.notes()["remarks"]


def test_a_loss_that_is_no_number_names_the_step_and_the_rate(tmp_path: Path, context_of: ContextOf) -> None:
    student = student_of(tmp_path / "student")
    context = context_of(build(tmp_path / "teacher"), sentences(40))

    def spoil() -> None:
        student.model.classifier.weight.data[:] = math.nan

    with pytest.raises(Diverged, match=r"diverged at step 2 of \d+: the loss is nan at the learning rate 0\.003; try a lower") as raised:
        train(student, context, QUICK.model_copy(update={"schedule": "constant", "warmup_share": 0}), after_step=spoil)
    assert isinstance(raised.value, Toolchain)


def test_what_progress_raises_ends_the_run(tmp_path: Path, context_of: ContextOf) -> None:
    def out_of_time(*_: Any, **__: Any) -> None:
        raise BudgetExceeded("the job's time is over")

    context = context_of(build(tmp_path / "teacher"), sentences(40), progress=out_of_time)
    with pytest.raises(BudgetExceeded):
        train(student_of(tmp_path / "student"), context)


# -- progress -----------------------------------------------------------------------------------------------------------------


def test_progress_stays_in_its_share_and_never_falls(tmp_path: Path, context_of: ContextOf, told: Told) -> None:
    context = context_of(build(tmp_path / "teacher"), sentences(60))
    fitted = train(student_of(tmp_path / "student"), context, QUICK, LossParameters(), share=(0.2, 0.6))
    fractions = [fraction for fraction, *_ in told]
    assert fractions == sorted(fractions)
    assert 0.2 <= fractions[0] < fractions[-1] == pytest.approx(0.6)
    validations = [(step, metrics) for _, message, step, metrics in told if "validation" in message]
    assert [step for step, _ in validations] == [0, fitted.steps // 2, fitted.steps]
    assert all({"validation_loss", "validation_agreement"} == set(metrics) for _, metrics in validations)


def test_points_are_told_four_times_a_second_at_most(tmp_path: Path, context_of: ContextOf, told: Told) -> None:
    from services.optimization.training.fitting import run

    clock = itertools.count(0, 0.01)
    context = context_of(build(tmp_path / "teacher"), sentences(160))
    training = QUICK.model_copy(update={"validation_share": 0, "epochs": 2, "checkpoint_seconds": 1000})
    fitted = run(student_of(tmp_path / "student"), context, training, BY_LABELS, stage="test", clock=lambda: next(clock))
    points = [step for _, _, step, metrics in told if "loss" in metrics]
    assert fitted.seconds / 0.5 < len(points) <= fitted.seconds / 0.25 + 1
    assert len(points) < fitted.steps


# -- refusals -----------------------------------------------------------------------------------------------------------------


def one_class() -> Examples:
    return dataclasses.replace(sentences(20), labels=np.ones(20, np.int64))


def out_of_range() -> Examples:
    return dataclasses.replace(sentences(20), labels=np.arange(20, dtype=np.int64))


def unlabelled() -> Examples:
    return dataclasses.replace(sentences(20), labels=None)


@pytest.mark.parametrize(
    ("examples", "losses", "reason"),
    [
        (one_class(), LossParameters(), r"every training example has the label 'odd'; one class teaches nothing"),
        (out_of_range(), LossParameters(), r"labels: 3 is out of range: the model tells 3 classes apart, 0 to 2"),
        (unlabelled(), LossParameters(labels=True), "the training examples have none"),
        (unlabelled(), LossParameters(alpha=0), "the training examples have none"),
        (sentences(1), LossParameters(), "training takes 2 examples at least; there are 1"),
        (Examples(), LossParameters(), "training takes 2 examples at least; there are 0"),
    ],
)
def test_data_that_cannot_be_learnt_from_is_refused(
    tmp_path: Path, context_of: ContextOf, examples: Examples, losses: LossParameters, reason: str
) -> None:
    with pytest.raises(NotEnoughData, match=reason):
        train(student_of(tmp_path / "student"), context_of(build(tmp_path / "teacher"), examples), QUICK, losses)


def test_one_class_is_enough_where_labels_are_not_used(tmp_path: Path, context_of: ContextOf) -> None:
    context = context_of(build(tmp_path / "teacher"), one_class())
    assert not train(student_of(tmp_path / "student"), context, QUICK, LossParameters(labels=False)).labelled


def test_alpha_counts_as_one_without_labels(tmp_path: Path, context_of: ContextOf) -> None:
    context = context_of(build(tmp_path / "teacher"), unlabelled())
    found = []
    for index, alpha in enumerate((0.3, 1.0)):
        student = student_of(tmp_path / f"student{index}")
        remarks = fit(student, context, QUICK, LossParameters(alpha=alpha), stage=str(index)).remarks
        found.append((weights(student), remarks))
    assert same(found[0][0], found[1][0])
    assert any("no labels" in remark for remark in found[0][1])
    assert not any("no labels" in remark for remark in found[1][1])


def other_vocabulary(folder: Path, task: Task) -> Model:
    made = build(folder, task, seed=1)
    write_tokenizer(folder, tuple(reversed(WORDS)))
    return made


def test_other_tokens_are_no_hindrance_where_whole_texts_are_compared(tmp_path: Path, context_of: ContextOf) -> None:
    teacher, student = build(tmp_path / "teacher"), other_vocabulary(tmp_path / "student", Task.CLASSIFICATION)
    context = context_of(teacher, sentences(60), source=student.folder, signature=student.signature)
    module = load_module(student.folder, student.signature)
    first, *_, last = train(module, context, QUICK, LossParameters(alpha=1)).curves["validation_loss"]
    assert last[1] < 0.9 * first[1]


@pytest.mark.parametrize(
    ("task", "losses"),
    [
        (Task.TOKEN_CLASSIFICATION, LossParameters(alpha=1)),
        (Task.CAUSAL_LM, LossParameters(alpha=1)),
        (Task.CLASSIFICATION, LossParameters(hidden=1)),
        (Task.EMBEDDING, LossParameters(attention_relation=1)),
    ],
)
def test_other_tokens_are_refused_where_tokens_are_compared(
    tmp_path: Path, context_of: ContextOf, task: Task, losses: LossParameters
) -> None:
    teacher, student = build(tmp_path / "teacher", task), other_vocabulary(tmp_path / "student", task)
    context = context_of(teacher, unlabelled(), source=student.folder, signature=student.signature)
    with pytest.raises(UnsupportedOperator, match="other tokens"):
        train(load_module(student.folder, student.signature), context, QUICK, losses)


def test_other_labels_are_refused(tmp_path: Path, context_of: ContextOf) -> None:
    teacher = build(tmp_path / "teacher")
    renamed = teacher.signature.model_copy(update={"labels": tuple(reversed(LABELS))})
    with pytest.raises(UnsupportedOperator, match="the teacher tells apart"):
        train(student_of(tmp_path / "student"), context_of(teacher, sentences(20), signature=renamed))


def test_a_teacher_that_does_not_load_is_told(tmp_path: Path, context_of: ContextOf) -> None:
    teacher, source = build(tmp_path / "teacher"), build(tmp_path / "source")
    (teacher.folder / "model.safetensors").write_bytes(b"none")
    context = context_of(teacher, sentences(20), source=source.folder)
    with pytest.raises(BadModel, match=r"^teacher: "):
        train(student_of(tmp_path / "student"), context, QUICK, LossParameters())


def test_an_embedding_of_another_width_is_refused(tmp_path: Path, context_of: ContextOf) -> None:
    context = context_of(build(tmp_path / "teacher", Task.EMBEDDING), unlabelled())
    with pytest.raises(UnsupportedOperator, match="the student answers 8 values, the teacher 16"):
        train(student_of(tmp_path / "student", Task.EMBEDDING, hidden_size=8, intermediate_size=16), context, QUICK, LossParameters())
