"""What a model says to examples, kept as small as comparing it needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.backends import Array, Backend
from services.optimization.rows import Batch, Rows, batches
from services.repository.manifest import Signature, Task

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

_PER_TOKEN = frozenset({Task.TOKEN_CLASSIFICATION, Task.CAUSAL_LM})


@dataclass(frozen=True)
class Answers:
    """In the order of the examples.

    vectors      FP32 [examples, d]: embeddings, logits, or the named tensors one after the other. None for per-token tasks.
    predictions  per example the likeliest label, or next token, at each of its real tokens: INT64 [tokens].
    losses       per example the negative log-likelihood of each of its tokens but the first: FP64 [tokens - 1]; language models only.
    """

    vectors: Floats | None = None
    predictions: Sequence[Ints] = ()
    losses: Sequence[Floats] = ()
    is_finite: bool = True

    def __len__(self) -> int:
        return len(self.vectors) if self.vectors is not None else len(self.predictions)


def answers(backend: Backend, signature: Signature, rows: Rows, batch_rows: int = 16) -> Answers:
    """Runs all rows in batches of like lengths as serving makes them. Raises services.backends.RunError.

    Batches matter: dynamic quantization takes one scale per batch, so a row's answer depends on its neighbours.
    """
    collect = _PerToken(len(rows), signature.task) if signature.task in _PER_TOKEN else _Vectors(len(rows))
    outputs = [spec.name for spec in signature.outputs]
    for positions, batch in batches(rows, batch_rows):
        collect.take(positions, batch, backend.run(batch, outputs))
    return collect.answers(signature.task)


class _Vectors:
    def __init__(self, examples: int) -> None:
        self._found: list[Floats] = [np.empty(0, np.float32)] * examples

    def take(self, positions: Sequence[int], batch: Batch, outputs: dict[str, Array]) -> None:
        flat = [np.asarray(values, np.float32).reshape(len(positions), -1) for values in outputs.values()]
        for position, answer in zip(positions, np.concatenate(flat, axis=1), strict=True):
            self._found[position] = answer

    def answers(self, task: Task) -> Answers:
        vectors = np.stack(self._found)
        return Answers(vectors=vectors, is_finite=bool(np.isfinite(vectors).all()))


class _PerToken:
    """Logits [rows, tokens, classes] are reduced batch by batch: those of a vocabulary would not fit."""

    def __init__(self, examples: int, task: Task) -> None:
        self._task = task
        self._predictions: list[Ints] = [np.empty(0, np.int64)] * examples
        self._losses: list[Floats] = [np.empty(0)] * examples
        self._is_finite = True

    def take(self, positions: Sequence[int], batch: Batch, outputs: dict[str, Array]) -> None:
        (logits,) = outputs.values()
        for row, position in enumerate(positions):
            length = int(batch["attention_mask"][row].sum())
            own = np.asarray(logits[row, :length], np.float32)
            self._is_finite = self._is_finite and bool(np.isfinite(own).all())
            self._predictions[position] = own.argmax(-1)
            if self._task is Task.CAUSAL_LM:
                self._losses[position] = _next_token_losses(own, batch["input_ids"][row, :length])

    def answers(self, task: Task) -> Answers:
        if task is Task.CAUSAL_LM:
            return Answers(predictions=self._predictions, losses=self._losses, is_finite=self._is_finite)
        return Answers(predictions=self._predictions, is_finite=self._is_finite)


def _next_token_losses(logits: Floats, ids: Ints) -> Floats:
    """Logits [tokens, vocabulary] and the ids that they follow, to [tokens - 1]. Empty where the classes are no vocabulary."""
    targets = ids[1:]
    if not len(targets) or targets.max() >= logits.shape[-1]:
        return np.empty(0)
    scores = logits[:-1].astype(np.float64)
    peaks = scores.max(-1)
    sums = peaks + np.log(np.exp(scores - peaks[:, None]).sum(-1))
    losses: Floats = sums - scores[np.arange(len(targets)), targets]
    return losses
