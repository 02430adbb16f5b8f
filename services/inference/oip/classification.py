"""The classification extension: the largest elements of a row, as Triton writes them."""

from collections.abc import Sequence

import numpy as np

from services.backends import Array


def largest(array: Array, k: int, labels: Sequence[str]) -> list[list[bytes]]:
    """Of each row the `k` largest elements, or all where it has fewer, largest first: `value:index`, or `value:index:label`.

    `labels` count only where each element of a row has one.
    """
    rows = array.reshape(len(array), -1)
    names = [f":{label}" for label in labels] if len(labels) == rows.shape[1] else [""] * rows.shape[1]
    # Sorted from behind and read from behind: of equal elements the first one leads, and unsigned ones need no negation.
    order = rows.shape[1] - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :k]
    return [[f"{_written(row[index])}:{index}{names[index]}".encode() for index in best] for row, best in zip(rows, order, strict=True)]


def _written(value: np.generic) -> str:
    """Six decimals for a fraction, none for a whole number, as C++'s to_string."""
    return f"{value:f}" if isinstance(value, np.floating) else str(int(value))
