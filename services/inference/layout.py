"""How rows become a batch and a batch's answers become rows again: `split(merge(rows), rows)` gives each row its own."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from services.backends import Array
from services.backends.text import pad
from services.repository.manifest import Signature

Values = Mapping[str, Array]


class Layout(Protocol):
    """Knows one model's inputs. A row's values have no row dimension."""

    def length(self, values: Values) -> int:
        """Tokens of a row; 1 where rows have no length."""

    def shape_key(self, values: Values) -> tuple[object, ...]:
        """Rows with equal keys can be merged."""

    def merge(self, rows: Sequence[Values]) -> Values:
        """One batch: every array has the rows as its first dimension."""

    def split(self, outputs: Values, rows: Sequence[Values]) -> list[Values]:
        """Each of the merged rows' answers, as views. Raises ValueError where an output does not have a row for each."""


class TextLayout:
    """Rows of `input_ids` INT64 [tokens]; shorter rows are padded on the right and masked out, in answers per token cut off again."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._per_token = per_token_outputs(signature)

    def length(self, values: Values) -> int:
        return len(values["input_ids"])

    def shape_key(self, values: Values) -> tuple[object, ...]:
        return ()

    def merge(self, rows: Sequence[Values]) -> Values:
        return pad([row["input_ids"] for row in rows], self._signature)

    def split(self, outputs: Values, rows: Sequence[Values]) -> list[Values]:
        found = _rows_of(outputs, len(rows))
        if not self._per_token:
            return found
        return [
            {name: array[: self.length(row)] if name in self._per_token else array for name, array in answers.items()}
            for answers, row in zip(found, rows, strict=True)
        ]


class TensorLayout:
    """Rows of named arrays; only rows of equal shapes are merged, since nothing says how to pad them."""

    def length(self, values: Values) -> int:
        return 1

    def shape_key(self, values: Values) -> tuple[object, ...]:
        return tuple((name, values[name].shape) for name in sorted(values))

    def merge(self, rows: Sequence[Values]) -> Values:
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def split(self, outputs: Values, rows: Sequence[Values]) -> list[Values]:
        return _rows_of(outputs, len(rows))


def layout_of(signature: Signature) -> Layout:
    """The layout for a model's task."""
    return TextLayout(signature) if signature.task.takes_text else TensorLayout()


def per_token_outputs(signature: Signature) -> frozenset[str]:
    """Outputs [rows, tokens, …]: as long as the batch was padded to."""
    specs = signature.outputs if signature.task.takes_text else ()
    return frozenset(spec.name for spec in specs if len(spec.shape) > 2 and spec.shape[1] == -1)


def stack(answers: Sequence[Array], tokens: int) -> Array:
    """Rows of a request to one array: those per token, [its tokens, …], are followed by zeros up to `tokens`, 0 for other answers."""
    if not tokens:
        return np.stack(answers) if len(answers) > 1 else answers[0][np.newaxis]
    stacked = np.zeros((len(answers), tokens, *answers[0].shape[1:]), answers[0].dtype)
    for index, answer in enumerate(answers):
        stacked[index, : len(answer)] = answer
    return stacked


def _rows_of(outputs: Values, rows: int) -> list[Values]:
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != rows:
            raise ValueError(f"output {name!r} has shape {array.shape} for {rows} rows")
    return [{name: array[index] for name, array in outputs.items()} for index in range(rows)]
