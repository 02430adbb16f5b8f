"""How near a candidate's answers are to the original's, on the same inputs, with the uncertainty of the sample."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.backends import Backend
from services.backends.text import Ids
from services.optimization.report import Interval
from services.optimization.tokenization import batches
from services.repository.manifest import Signature, Task

Floats = NDArray[np.floating[Any]]

RESAMPLES = 2000
_Z95 = 1.959963984540054
_TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class Fidelity:
    """`interval` is what gates look at, `worst` the lowest single example, both at most 1."""

    interval: Interval
    worst: float
    examples: int
    notes: Mapping[str, Any] = field(default_factory=dict)


def answers(backend: Backend, signature: Signature, rows: Sequence[Ids], batch_rows: int = 16) -> Floats:
    """FP32 [texts, dimensions or labels] in the order of `rows`, run in batches of like lengths as serving makes them.

    Batches matter: dynamic quantization takes one scale per batch, so a row's answer depends on its neighbours.
    """
    output = signature.outputs[0].name
    found: list[Floats] = [np.empty(0, np.float32)] * len(rows)
    for positions, batch in batches(rows, signature, batch_rows):
        for position, answer in zip(positions, backend.run(batch, [output])[output], strict=True):
            found[position] = answer
    return np.stack(found)


def bootstrap_mean(values: Floats, seed: int) -> Interval:
    """Percentile bootstrap of the mean of a sample [n]."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), _TAILS)
    return Interval(estimate=float(values.mean()), low=float(low), high=float(high))


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927): sound near 1, where a share of equal predictions lies."""
    share, z2 = successes / trials, _Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return Interval(estimate=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def cosine_rows(left: Floats, right: Floats) -> Floats:
    """[n, d] and [n, d] to [n]; a zero vector is as far as can be from everything but another zero vector."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    both_zero = ~left.any(axis=1) & ~right.any(axis=1)
    cosines = (left * right).sum(axis=1) / np.where(norms == 0, 1, norms)
    return np.where(both_zero, 1.0, np.clip(cosines, -1, 1))


def _nearest(vectors: Floats) -> NDArray[np.intp]:
    """Index of each row's nearest other row by cosine."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: NDArray[np.intp] = similarity.argmax(axis=1)
    return nearest


def embedding_fidelity(original: Floats, candidate: Floats, seed: int) -> Fidelity:
    """Mean cosine with its bootstrap interval; notes tell how many texts keep their nearest neighbour."""
    cosines = cosine_rows(original.astype(np.float64), candidate.astype(np.float64))
    notes = {}
    if len(original) > 1:
        notes["nearest_neighbour_agreement"] = float((_nearest(original) == _nearest(candidate)).mean())
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


def compare(task: Task, original: Floats, candidate: Floats, seed: int) -> Fidelity:
    """By the task: [n, dimensions] embeddings or [n, labels] logits. A candidate with NaN or infinity has fidelity 0."""
    if not np.isfinite(candidate).all():
        return Fidelity(Interval(estimate=0.0, low=0.0, high=0.0), 0.0, len(candidate), {"not_finite": True})
    if task is Task.CLASSIFICATION:
        return classification_fidelity(original, candidate)
    return embedding_fidelity(original, candidate, seed)
