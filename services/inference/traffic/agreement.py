"""How far a shadow's answers agree with the control's, row by row."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from services.backends import Array
from services.repository.manifest import Task

CLOSE = 0.01  # a tensor's row agrees when it differs nowhere by more than this share of its largest value
LARGEST = 1e308  # stands for a difference that is no number
LABELLED = frozenset({Task.CLASSIFICATION, Task.IMAGE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.CAUSAL_LM})


@dataclass(frozen=True, slots=True)
class Agreement:
    """`rows` is each row's agreement, 0 to 1. `total_variation` is each labelled row's, empty for other tasks."""

    rows: Array
    flipped_rows: int
    total_variation: Array
    max_abs_difference: float


def compare(task: Task, control: Mapping[str, Array], shadow: Mapping[str, Array]) -> Agreement:
    """Compares outputs [rows, …] of equal names. Raises ValueError where their shapes differ.

    Vectors agree by their cosine, none counting less than 0; logits by their most probable label, at each token where there are several;
    other tensors where they are close.
    """
    for name, array in control.items():
        if name not in shadow or shadow[name].shape != array.shape:
            raise ValueError(f"{name}: the shadow answers {shadow[name].shape if name in shadow else 'nothing'}, the control {array.shape}")
    pairs = [(_flat(array), _flat(shadow[name])) for name, array in control.items()]
    difference = max(_largest_difference(left, right) for left, right in pairs)
    if task in LABELLED:
        return _labels(next(iter(control.values())), next(iter(shadow.values())), difference)
    agree = _cosines if task is Task.EMBEDDING else _close
    rows = np.minimum.reduce([agree(left, right) for left, right in pairs])
    return Agreement(rows, 0, np.empty(0), difference)


def _flat(array: Array) -> Array:
    return array.reshape(len(array), -1).astype(np.float64)


def _cosines(left: Array, right: Array) -> Array:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines: Array = np.nan_to_num(np.clip((left * right).sum(axis=1) / norms, 0, 1), nan=0.0)
    return cosines


def _close(left: Array, right: Array) -> Array:
    with np.errstate(invalid="ignore"):
        close: Array = np.abs(left - right).max(axis=1) <= CLOSE * np.abs(left).max(axis=1)
    return close.astype(np.float64)


def _largest_difference(left: Array, right: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.nan_to_num(np.abs(left - right).max(initial=0.0), nan=LARGEST, posinf=LARGEST))


def _labels(left: Array, right: Array, difference: float) -> Agreement:
    """`left` and `right` are logits [rows, labels] or [rows, tokens, labels], zeros where a row is padded."""
    left, right = (logits.reshape(len(logits), -1, logits.shape[-1]).astype(np.float64) for logits in (left, right))
    real = (left != 0).any(axis=2)
    positions = np.maximum(real.sum(axis=1), 1)
    equal = (left.argmax(axis=2) == right.argmax(axis=2)) & ~np.isnan(right).any(axis=2)
    rows = np.where(real, equal, 0).sum(axis=1) / positions
    apart = np.nan_to_num(np.abs(_softmax(left) - _softmax(right)).sum(axis=2) / 2, nan=1.0)
    return Agreement(rows, int((rows < 1).sum()), np.where(real, apart, 0).sum(axis=1) / positions, difference)


def _softmax(logits: Array) -> Array:
    with np.errstate(invalid="ignore"):
        shifted = np.exp(logits - logits.max(axis=2, keepdims=True))
        softmax: Array = shifted / shifted.sum(axis=2, keepdims=True)
    return softmax
