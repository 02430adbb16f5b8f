"""How rows become a batch and a batch's answers become rows again: `split(merge(rows))` gives each row its own."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from services.backends import Array
from services.backends.text import pad
from services.repository.manifest import Signature, Task

Values = Mapping[str, Array]


class Layout(Protocol):
    """Knows one model's inputs. A row's values have no row dimension."""

    def length(self, values: Values) -> int:
        """Tokens of a row; 1 where rows have no length."""

    def shape_key(self, values: Values) -> tuple[object, ...]:
        """Rows with equal keys can be merged."""

    def merge(self, rows: Sequence[Values]) -> Values:
        """One batch: every array has the rows as its first dimension."""


class TextLayout:
    """Rows of `input_ids` INT64 [tokens]; shorter rows are padded on the right and masked out."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature

    def length(self, values: Values) -> int:
        return len(values["input_ids"])

    def shape_key(self, values: Values) -> tuple[object, ...]:
        return ()

    def merge(self, rows: Sequence[Values]) -> Values:
        return pad([row["input_ids"] for row in rows], self._signature)


class TensorLayout:
    """Rows of named arrays; only rows of equal shapes are merged, since nothing says how to pad them."""

    def length(self, values: Values) -> int:
        return 1

    def shape_key(self, values: Values) -> tuple[object, ...]:
        return tuple((name, values[name].shape) for name in sorted(values))

    def merge(self, rows: Sequence[Values]) -> Values:
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def layout_of(signature: Signature) -> Layout:
    """The layout for a model's task."""
    return TensorLayout() if signature.task is Task.TENSOR else TextLayout(signature)


def split(outputs: Values, rows: int) -> list[Values]:
    """Each row's answers, as views. Raises ValueError where an output does not have `rows` as its first dimension."""
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != rows:
            raise ValueError(f"output {name!r} has shape {array.shape} for {rows} rows")
    return [{name: array[index] for name, array in outputs.items()} for index in range(rows)]
