"""Training examples as both models take them, and batches of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.optimization.examples import IGNORED, Examples, Ints
from services.optimization.failures import NotEnoughData, UnsupportedOperator
from services.optimization.rows import Rows, TextRows, prepare
from services.optimization.techniques.technique import Context, Model
from services.optimization.training.parameters import LossParameters
from services.repository.manifest import Signature, Task

Inputs = Mapping[str, Tensor]

PER_TOKEN = frozenset({Task.TOKEN_CLASSIFICATION, Task.CAUSAL_LM})
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Batch:
    """`labels` INT64 [rows], or [rows, tokens] with IGNORED at what counts for nothing; None where there is nothing to count by."""

    positions: Sequence[int]
    inputs: Inputs
    labels: Tensor | None
    mask: Tensor | None  # [rows, tokens], texts alone

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Data:
    """All training examples, tokenized for the student and the teacher. Positions are those of `context.training`.

    `labels` is [n], or per text [tokens]; `is_labelled` tells whether their values mean anything or only what counts.
    """

    task: Task
    rows: Rows
    teacher_rows: Rows
    labels: Ints | Sequence[Ints] | None
    is_labelled: bool

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shares_tokens(self) -> bool:
        return self.rows is self.teacher_rows

    def batch(self, positions: Sequence[int], device: torch.device) -> Batch:
        inputs = tensors(self.rows, positions, device)
        return Batch(positions, inputs, self._labels(positions, device), inputs.get("attention_mask"))

    def _labels(self, positions: Sequence[int], device: torch.device) -> Tensor | None:
        if self.labels is None:
            return None
        if isinstance(self.labels, np.ndarray):
            return torch.from_numpy(self.labels[np.asarray(positions)]).to(device)
        chosen = [torch.from_numpy(self.labels[position]) for position in positions]
        return torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=IGNORED).to(device)


def tensors(rows: Rows, positions: Sequence[int], device: torch.device) -> dict[str, Tensor]:
    batch = rows.batch(positions)
    return {name: torch.from_numpy(np.ascontiguousarray(values)).to(device) for name, values in batch.items()}


def read(context: Context, losses: LossParameters, max_tokens: int) -> Data:
    """Raises NotEnoughData for examples that cannot be learnt from, UnsupportedOperator for a teacher that answers something else."""
    examples, signature = context.training, context.signature
    if len(examples) < 2:
        raise NotEnoughData(f"training takes 2 examples at least; there are {len(examples)}")
    check_teacher(signature, context.original.signature)
    used = _is_labelled(signature.task, examples, losses)
    if signature.task is Task.TOKEN_CLASSIFICATION and examples.words and not examples.word_labels:
        # Without labels the same tokens count: each word's first. What they are labelled with is not looked at.
        examples = replace(examples, word_labels=tuple(np.zeros(len(words), np.int64) for words in examples.words))
    rows = prepare(context.source, _cut(signature, max_tokens), examples, context.remembered)
    labels = _labels_of(signature.task, rows, examples, used)
    if used and signature.task is not Task.CAUSAL_LM:
        check_labels(labels, _classes(signature), signature.labels)
    return Data(signature.task, rows, _teacher_rows(context, examples, rows, max_tokens), labels, used)


def check_teacher(student: Signature, teacher: Signature) -> None:
    """Raises UnsupportedOperator unless the two answer the same question."""
    if student.task is not teacher.task:
        raise UnsupportedOperator(f"the teacher answers {teacher.task}, the student {student.task}")
    if student.labels != teacher.labels:
        raise UnsupportedOperator(f"the teacher tells apart {list(teacher.labels)}, the student {list(student.labels)}")
    if student.task is Task.TENSOR:
        raise UnsupportedOperator("a tensor model tells nothing of what its outputs mean: no loss is defined for them")


def _is_labelled(task: Task, examples: Examples, losses: LossParameters) -> bool:
    """Whether labels shape the loss. Raises NotEnoughData where they should and are not there."""
    if task is Task.EMBEDDING:
        return False
    if task is Task.CAUSAL_LM:
        return losses.labels is not False  # the next token is its own label
    wanted = losses.labels or (losses.labels is None and losses.alpha == 0)
    if wanted and not examples.is_labelled:
        raise NotEnoughData("labels: the training examples have none, and the losses ask for them (labels true, or alpha 0)")
    return examples.is_labelled and losses.labels is not False


def _labels_of(task: Task, rows: Rows, examples: Examples, used: bool) -> Ints | Sequence[Ints] | None:
    if task is Task.CAUSAL_LM and isinstance(rows, TextRows):
        labels: list[Ints] = [np.append(ids[1:], IGNORED).astype(np.int64) for ids in rows.ids]
        return _counting(labels)
    if task is Task.TOKEN_CLASSIFICATION and isinstance(rows, TextRows):
        return _counting(rows.labels if rows.labels is not None else [np.zeros(len(ids), np.int64) for ids in rows.ids])
    return examples.labels if used else None


def _counting(labels: Sequence[Ints]) -> Sequence[Ints]:
    if not any((row != IGNORED).any() for row in labels):
        raise NotEnoughData("the training examples hold no token to learn from")
    return labels


def _classes(signature: Signature) -> int:
    return len(signature.labels) or signature.outputs[0].shape[-1]


def check_labels(labels: Ints | Sequence[Ints] | None, classes: int, names: Sequence[str]) -> None:
    """Raises NotEnoughData for a label that the model has no class for, and for labels that are all the same."""
    every: NDArray[np.int64] = np.unique(labels if isinstance(labels, np.ndarray) else np.concatenate(list(labels or [])))
    every = every[every != IGNORED]
    wrong = every[(every < 0) | (every >= classes)]
    if len(wrong):
        raise NotEnoughData(f"labels: {wrong[0]} is out of range: the model tells {classes} classes apart, 0 to {classes - 1}")
    if len(every) == 1:
        name = names[every[0]] if names else every[0]
        raise NotEnoughData(f"labels: every training example has the label {name!r}; one class teaches nothing (labels false ignores them)")


def _cut(signature: Signature, max_tokens: int) -> Signature:
    limits = [limit for limit in (signature.max_tokens, max_tokens) if limit]
    return signature.model_copy(update={"max_tokens": min(limits, default=0)})


def _teacher_rows(context: Context, examples: Examples, rows: Rows, max_tokens: int) -> Rows:
    """The student's own where both tokenize alike. Raises UnsupportedOperator where they do not and must."""
    task = context.signature.task
    if not task.takes_text or same_tokenizer(context, context.original):
        return rows
    if task in PER_TOKEN:
        raise UnsupportedOperator(f"{task}: the teacher and the student cut texts into other tokens, whose answers cannot be compared")
    return prepare(context.original.folder, _cut(context.original.signature, max_tokens), examples, context.original_remembered)


def same_tokenizer(context: Context, teacher: Model) -> bool:
    """Whether both folders make the same ids of every text, by what their files say."""
    own, known = (json.loads((folder / _TOKENIZER).read_text(encoding="utf-8")) for folder in (context.source, teacher.folder))
    ignored = ("truncation", "padding")  # ours alone count
    return {name: value for name, value in own.items() if name not in ignored} == {
        name: value for name, value in known.items() if name not in ignored
    }
