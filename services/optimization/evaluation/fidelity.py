"""How near a candidate's answers are to the original's, on the same inputs, with the uncertainty of the sample."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.optimization.evaluation.answers import Answers, Floats, answers
from services.optimization.evaluation.intervals import bootstrap, bootstrap_mean, wilson
from services.optimization.report import Interval
from services.repository.manifest import Task

__all__ = ["Answers", "Fidelity", "answers", "compare"]

_NEAREST_ROWS = 1024  # whose similarities to all are held at once


@dataclass(frozen=True)
class Fidelity:
    """`interval` is what gates look at, `worst` the lowest single example, both at most 1."""

    interval: Interval
    worst: float
    examples: int
    notes: Mapping[str, Any] = field(default_factory=dict)


def cosine_rows(left: Floats, right: Floats) -> Floats:
    """[n, d] and [n, d] to [n]; a zero vector is as far as can be from everything but another zero vector."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    both_zero = ~left.any(axis=1) & ~right.any(axis=1)
    cosines = (left * right).sum(axis=1) / np.where(norms == 0, 1, norms)
    return np.where(both_zero, 1.0, np.clip(cosines, -1, 1))


def _nearest(vectors: Floats) -> NDArray[np.intp]:
    """Index of each row's nearest other row by cosine."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    nearest = np.empty(len(unit), np.intp)
    for start in range(0, len(unit), _NEAREST_ROWS):  # the whole matrix of fifty thousand examples would be ten gigabytes
        similarity = unit[start : start + _NEAREST_ROWS] @ unit.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        nearest[start : start + len(rows)] = similarity.argmax(axis=1)
    return nearest


def retrieval_agreement(original: Floats, candidate: Floats) -> Interval:
    """Share of examples whose nearest neighbour among the others stays the same, with Wilson's interval."""
    kept = _nearest(original) == _nearest(candidate)
    return wilson(int(kept.sum()), len(kept))


def embedding_fidelity(original: Floats, candidate: Floats, seed: int) -> Fidelity:
    """Mean cosine with its bootstrap interval; notes tell how many examples keep their nearest neighbour."""
    cosines = cosine_rows(original.astype(np.float64), candidate.astype(np.float64))
    notes = {}
    if len(original) > 1:
        notes["nearest_neighbour_agreement"] = retrieval_agreement(original, candidate).model_dump()
    return Fidelity(bootstrap_mean(cosines, seed), float(cosines.min()), len(cosines), notes)


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


def classification_fidelity(original: Floats, candidate: Floats) -> Fidelity:
    """Share of equal predictions with Wilson's interval; the worst example is 1 - total variation distance of its probabilities."""
    equal = original.argmax(axis=1) == candidate.argmax(axis=1)
    shared = 1 - 0.5 * np.abs(_softmax(original.astype(np.float64)) - _softmax(candidate.astype(np.float64))).sum(axis=1)
    notes = {"changed_predictions": int((~equal).sum()), "mean_probability_overlap": float(shared.mean())}
    return Fidelity(wilson(int(equal.sum()), len(equal)), float(shared.min()), len(equal), notes)


def token_fidelity(original: Answers, candidate: Answers, seed: int) -> Fidelity:
    """Share of equal predictions over all tokens; the bootstrap draws whole examples, whose tokens are not independent."""
    pairs = zip(original.predictions, candidate.predictions, strict=True)
    counts = np.array([[(before == after).sum(), len(before)] for before, after in pairs], np.float64)
    counts = counts[counts[:, 1] > 0]
    changed = int(counts[:, 1].sum() - counts[:, 0].sum())
    if not changed:  # the bootstrap of equal draws would be certain
        return Fidelity(wilson(len(counts), len(counts)), 1.0, len(counts), {"changed_tokens": 0})
    interval = bootstrap(counts, lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1), seed)
    return Fidelity(interval, float((counts[:, 0] / counts[:, 1]).min()), len(counts), {"changed_tokens": changed})


def compare(task: Task, original: Answers, candidate: Answers, seed: int) -> Fidelity:
    """By the task. A candidate with NaN or infinity has fidelity 0."""
    if not candidate.is_finite:
        return Fidelity(Interval(estimate=0.0, low=0.0, high=0.0), 0.0, len(candidate), {"not_finite": True})
    if original.vectors is None or candidate.vectors is None:
        return token_fidelity(original, candidate, seed)
    if task in (Task.CLASSIFICATION, Task.IMAGE_CLASSIFICATION):
        return classification_fidelity(original.vectors, candidate.vectors)
    return embedding_fidelity(original.vectors, candidate.vectors, seed)
