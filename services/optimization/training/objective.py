"""The loss of a run as named terms, each a sum over its items and how many items that are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from services.optimization.examples import IGNORED
from services.optimization.failures import UnsupportedOperator
from services.optimization.training import losses as formulas
from services.optimization.training.anatomy import find_layers, inner_model
from services.optimization.training.data import PER_TOKEN, Batch
from services.optimization.training.internals import OUTPUT, RELATIONS, hidden_name, matched_layers
from services.optimization.training.parameters import LossParameters
from services.optimization.training.teacher import Answers
from services.repository.manifest import Task

_MOST_RELATION_HEADS = 16

TASK, HIDDEN, RELATION = "task", "hidden", "attention_relation"


@dataclass(frozen=True)
class Wanted:
    """What the losses read of each model beside or instead of its output, by the names of `internals`."""

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]  # (student's, teacher's) hidden states


def teacher_weight(task: Task, losses: LossParameters, is_labelled: bool) -> float:
    """`alpha`, which counts as 1 without labels. Embeddings have none and weigh two ways to compare with the teacher."""
    return losses.alpha if is_labelled or task is Task.EMBEDDING else 1.0


def wanted(task: Task, losses: LossParameters, is_labelled: bool, student_layers: int, teacher_layers: int) -> Wanted:
    """Layer counts are read only with `hidden`."""
    output = (OUTPUT,) if task is Task.EMBEDDING or teacher_weight(task, losses, is_labelled) > 0 else ()
    matched = matched_layers(student_layers, teacher_layers) if losses.hidden else []
    pairs = tuple((hidden_name(own), hidden_name(known)) for own, known in matched)
    relations = RELATIONS if losses.attention_relation else ()
    return Wanted(tuple(own for own, _ in pairs) + relations, (*output, *(known for _, known in pairs), *relations), pairs)


def layer_count(module: nn.Module) -> int:
    return len(find_layers(inner_model(module)))


class Objective(nn.Module):
    """Its parameters are the projections of hidden states, trained with the student and thrown away."""

    def __init__(self, task: Task, losses: LossParameters, is_labelled: bool, names: Wanted) -> None:
        super().__init__()
        self._task = task
        self._losses = losses
        self._alpha = teacher_weight(task, losses, is_labelled)
        self._pairs = names.pairs
        self.projections = nn.ModuleDict()

    def prepare(self, student: Mapping[str, Tensor], teacher: Answers) -> None:
        """By one batch's answers of both: makes the projections. Raises UnsupportedOperator for shapes that do not fit."""
        if OUTPUT in teacher and student[OUTPUT].shape[-1] != teacher[OUTPUT].shape[-1]:
            found, known = student[OUTPUT].shape[-1], teacher[OUTPUT].shape[-1]
            raise UnsupportedOperator(f"the student answers {found} values, the teacher {known}: they cannot be compared")
        for own, known_name in self._pairs:
            found_states, known_states = student[own], teacher[known_name]
            if found_states.ndim != 3 or found_states.shape[:2] != known_states.shape[:2]:
                raise UnsupportedOperator(f"hidden: {own} of the student and {known_name} of the teacher are no states of the same tokens")
            if found_states.shape[2] != known_states.shape[2]:
                self.projections[own.replace(".", "_")] = nn.Linear(found_states.shape[2], known_states.shape[2])
        self.projections.to(student[OUTPUT].device)

    @property
    def weights(self) -> Mapping[str, float]:
        every = {TASK: 1.0, HIDDEN: self._losses.hidden, RELATION: self._losses.attention_relation}
        return {name: weight for name, weight in every.items() if weight}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Items of each term, known before anything has run."""
        tokens = int(batch.mask.sum()) if batch.mask is not None else len(batch)
        rows = int((batch.labels != IGNORED).sum()) if self._task in PER_TOKEN and batch.labels is not None else len(batch)
        every = {TASK: rows, HIDDEN: tokens, RELATION: tokens}
        return {name: every[name] for name in self.weights}

    def sums(self, batch: Batch, student: Mapping[str, Tensor], teacher: Answers) -> dict[str, Tensor]:
        """The sum of each term over the batch's items."""
        found = {TASK: self._task_sum(batch, student[OUTPUT], teacher)}
        if self._losses.hidden:
            found[HIDDEN] = self._hidden_sum(batch, student, teacher)
        if self._losses.attention_relation:
            found[RELATION] = self._relation_sum(batch, student, teacher)
        return found

    def _task_sum(self, batch: Batch, output: Tensor, teacher: Answers) -> Tensor:
        if self._task is Task.EMBEDDING:
            return formulas.embedding(output, teacher[OUTPUT], self._alpha)
        output, known, labels = (counted(self._task, batch, values) for values in (output, teacher.get(OUTPUT), batch.labels))
        return formulas.distillation(output, known, labels, self._losses.temperature, self._alpha)

    def _hidden_sum(self, batch: Batch, student: Mapping[str, Tensor], teacher: Answers) -> Tensor:
        """The mean over the pairs of layers."""
        total = student[OUTPUT].new_zeros(())
        for own, known in self._pairs:
            name = own.replace(".", "_")
            states = self.projections[name](student[own]) if name in self.projections else student[own]
            total = total + formulas.hidden(states, teacher[known], _row_mask(batch, states))
        return total / len(self._pairs)

    def _relation_sum(self, batch: Batch, student: Mapping[str, Tensor], teacher: Answers) -> Tensor:
        total = student[OUTPUT].new_zeros(())
        for name in RELATIONS:
            heads = formulas.relation_heads(teacher[name].shape[-1], student[name].shape[-1], _MOST_RELATION_HEADS)
            total = total + formulas.relation(student[name], teacher[name], _row_mask(batch, student[name]), heads)
        return total / len(RELATIONS)


def _row_mask(batch: Batch, states: Tensor) -> Tensor:
    """[rows, tokens]. An image's tokens all count, each as much as makes its row one item."""
    if batch.mask is not None:
        return batch.mask.to(states.dtype)
    return states.new_full(states.shape[:2], 1 / states.shape[1])


def counted(task: Task, batch: Batch, values: Any) -> Any:
    """Of logits or labels [rows, …] or [rows, tokens, …] those of the items that count, [n, …]; None of None."""
    if values is None or task not in PER_TOKEN or batch.labels is None:
        return values
    return values[batch.labels != IGNORED]


@torch.no_grad()
def agreement(task: Task, batch: Batch, output: Tensor, known: Tensor | None) -> tuple[float, int]:
    """(sum, items) of how often the student says what the teacher says, the cosine for embeddings; (0, 0) without a teacher."""
    if known is None:
        return 0.0, 0
    if task is Task.EMBEDDING:
        return float(nn.functional.cosine_similarity(output, known).sum()), len(output)
    found, wanted_classes = counted(task, batch, output).argmax(-1), counted(task, batch, known).argmax(-1)
    return float((found == wanted_classes).sum()), len(found)


def mean_loss(sums: Sequence[Mapping[str, float]], counts: Sequence[Mapping[str, int]], weights: Mapping[str, float]) -> float:
    """The loss of the union of several batches."""
    return sum(weight * sum(part[name] for part in sums) / max(1, sum(part[name] for part in counts)) for name, weight in weights.items())
