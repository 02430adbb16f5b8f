"""A job's data: from a dataset's columns, or texts brought along, to examples of the kind that the model takes."""

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.optimization.datasets.parsing import read_table
from services.optimization.datasets.table import BadDataset, Table, Values
from services.optimization.examples import Examples, Ints
from services.optimization.failures import NotEnoughData
from services.optimization.spec import DataSource
from services.repository.dataset_manifest import Column, ColumnKind, DatasetFormat, DatasetManifest
from services.repository.manifest import Frozen, Signature, Task

TEXT_COLUMNS = ("text", "sentence", "content")
WORD_COLUMNS = ("tokens", "words")
LABEL_COLUMNS = ("label", "labels")

_DTYPES = {
    "FP32": np.float32,
    "FP16": np.float16,
    "FP64": np.float64,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT8": np.int8,
    "UINT8": np.uint8,
}
_LABEL_KINDS = frozenset({ColumnKind.TEXT, ColumnKind.INTEGER})
_WORD_LABEL_KINDS = frozenset({ColumnKind.TOKENS, ColumnKind.INTEGERS})


class Data(Frozen):
    """A source of examples whose file lies where the job can read it."""

    source: DataSource = DataSource()
    path: Path | None = None
    format: DatasetFormat | None = None

    def __bool__(self) -> bool:
        return bool(self.source)


@dataclass(frozen=True)
class Roles:
    """Which columns are what. `inputs` holds one name for texts or words, else one per input in their order; `label` may be ""."""

    inputs: tuple[str, ...]
    label: str


def choose_columns(columns: Sequence[Column], signature: Signature, label_column: str) -> Roles:
    """By name and kind. Raises ValueError whose text names the column at fault."""
    inputs = tuple(_input_columns(columns, signature, label_column))
    return Roles(inputs, _label_column(columns, signature.task, label_column))


def _input_columns(columns: Sequence[Column], signature: Signature, label_column: str) -> Iterator[str]:
    if signature.task is Task.TOKEN_CLASSIFICATION:
        yield _column(columns, ColumnKind.TOKENS, WORD_COLUMNS, label_column)
    elif signature.task.takes_text:
        yield _column(columns, ColumnKind.TEXT, TEXT_COLUMNS, label_column)
    else:
        yield from (_array_column(columns, spec.name, len(signature.inputs) == 1) for spec in signature.inputs)


def _column(columns: Sequence[Column], kind: ColumnKind, names: Sequence[str], label_column: str) -> str:
    """One of the usual names, else the only one of the kind that is not the label's."""
    fitting = [column.name for column in columns if column.kind is kind and column.name not in (label_column, *LABEL_COLUMNS)]
    named = [name for name in names if name in fitting]
    if not named and len(fitting) != 1:
        raise ValueError(f"the data has no column {names[0]!r} of the kind {kind.value}; there are {_told(columns)}")
    return (named or fitting)[0]


def _array_column(columns: Sequence[Column], name: str, alone: bool) -> str:
    arrays = [
        column.name for column in columns if column.kind in (ColumnKind.ARRAY, ColumnKind.NUMBER) and column.name not in LABEL_COLUMNS
    ]
    if name in {column.name for column in columns}:
        return name
    if alone and len(arrays) == 1:
        return arrays[0]
    raise ValueError(f"the data has no array {name!r}, which the model takes; there are {_told(columns)}")


def _label_column(columns: Sequence[Column], task: Task, asked: str) -> str:
    kinds = _WORD_LABEL_KINDS if task is Task.TOKEN_CLASSIFICATION else _LABEL_KINDS
    by_name = {column.name: column for column in columns}
    if asked:
        if asked not in by_name:
            raise ValueError(f"the data has no column {asked!r}; there are {_told(columns)}")
        if by_name[asked].kind not in kinds:
            raise ValueError(f"the column {asked!r} holds {by_name[asked].kind.value}, which is no label of a {task} model")
        return asked
    return next((name for name in LABEL_COLUMNS if name in by_name and by_name[name].kind in kinds), "")


def _told(columns: Sequence[Column]) -> str:
    return ", ".join(f"{column.name} ({column.kind.value})" for column in columns)


def check(source: DataSource, manifest: DatasetManifest | None, signature: Signature) -> bool:
    """What can be known of a job's data without reading it; answers whether it is labelled. Raises ValueError."""
    if manifest is not None:
        return bool(choose_columns(manifest.columns, signature, source.label_column).label)
    if source.texts and (not signature.task.takes_text or signature.task is Task.TOKEN_CLASSIFICATION):
        raise ValueError(f"a {signature.task} model takes a dataset, not texts")
    if source.label_column and source.texts:
        raise ValueError("label_column names a column of a dataset; texts bring their labels along")
    for index, label in enumerate(source.labels):
        if label not in signature.labels:
            raise ValueError(f"labels[{index}]: {label!r} is no label of the model; it has {', '.join(signature.labels) or 'none'}")
    return bool(source.labels)


def read(data: Data, signature: Signature) -> Examples:
    """The examples of `data`; none for an absent source. Raises NotEnoughData naming the column or row at fault."""
    try:
        if data.path is None or data.format is None:
            return _inline(data.source, signature)
        return _from_table(read_table(data.path, data.format), signature, data.source)
    except (_Unfit, BadDataset) as error:
        raise NotEnoughData(f"{data.source.dataset or 'data'}: {error}") from error


def check_disjoint(evaluation: Examples, **others: Examples) -> None:
    """A text that was trained or calibrated on proves nothing. Raises NotEnoughData whose text begins with the name of the others."""
    seen = set(_identities(evaluation))
    for name, found in others.items():
        shared = next((index for index, identity in enumerate(_identities(found)) if identity in seen), None)
        if shared is not None:
            told = f": {_shown(found, shared)[:80]!r}" if found.texts or found.words else ""
            raise NotEnoughData(f"{name}: example {shared} is in the evaluation data too{told}")


def _identities(examples: Examples) -> Iterator[Hashable]:
    """What makes each example the same as another; labels do not."""
    if examples.texts or examples.words:
        yield from (*examples.texts, *examples.words)
        return
    arrays = [np.ascontiguousarray(values) for _, values in sorted(examples.arrays.items())]
    for row in range(len(examples)):
        yield hashlib.sha256(b"".join(values[row].tobytes() for values in arrays)).digest()


def _shown(examples: Examples, index: int) -> str:
    return examples.texts[index] if examples.texts else " ".join(examples.words[index])


class _Unfit(ValueError):
    """The data is not of the kind that the model takes."""


def _inline(source: DataSource, signature: Signature) -> Examples:
    texts = source.texts[: source.max_rows or None]
    labels = source.labels[: source.max_rows or None]
    return Examples(texts=texts, labels=_label_indices(labels, signature, "labels") if labels else None)


def _from_table(table: Table, signature: Signature, source: DataSource) -> Examples:
    try:
        roles = choose_columns(table.schema, signature, source.label_column)
    except ValueError as error:
        raise _Unfit(str(error)) from error
    most = source.max_rows or None
    columns = {name: table.columns[name][:most] for name in (*roles.inputs, *((roles.label,) if roles.label else ()))}
    if signature.task is Task.TOKEN_CLASSIFICATION:
        return _words(columns, roles, signature)
    labels = _label_indices(columns[roles.label], signature, roles.label) if roles.label and signature.labels else None
    if signature.task.takes_text:
        return Examples(texts=tuple(map(str, columns[roles.inputs[0]])), labels=labels)
    arrays = {
        spec.name: _array(columns[name], spec.datatype, spec.shape, name) for spec, name in zip(signature.inputs, roles.inputs, strict=True)
    }
    return Examples(arrays=arrays, labels=labels)


def _words(columns: dict[str, Values], roles: Roles, signature: Signature) -> Examples:
    words = tuple(tuple(row) for row in columns[roles.inputs[0]])
    if not roles.label:
        return Examples(words=words)
    labels = tuple(_label_indices(row, signature, f"{roles.label}[{index}]") for index, row in enumerate(columns[roles.label]))
    for index, (row, found) in enumerate(zip(words, labels, strict=True)):
        if len(row) != len(found):
            raise _Unfit(f"{roles.label}[{index}]: {len(found)} labels for {len(row)} words")
    return Examples(words=words, word_labels=labels)


def _label_indices(values: Any, signature: Signature, field: str) -> Ints:
    """Names or indices of the model's labels, to indices."""
    known = {name: index for index, name in enumerate(signature.labels)}
    found = np.array([known.get(value, -1) if isinstance(value, str) else int(value) for value in values], np.int64)
    wrong = np.flatnonzero((found < 0) | (found >= len(known)))
    if len(wrong):
        value = values[wrong[0]]
        told = repr(value) if isinstance(value, str) else str(value)
        raise _Unfit(f"{field}[{wrong[0]}]: {told} is no label of the model; it has {', '.join(signature.labels) or 'none'}")
    return found


def _array(values: Any, datatype: str, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """[n, ...] in the model's dtype; whole numbers must not change by it."""
    if datatype not in _DTYPES:
        raise _Unfit(f"{name}: the model takes {datatype}, which no dataset holds")
    found = np.asarray(values)
    wanted = tuple(shape[1:])
    if len(found.shape) != len(shape) or any(size not in (-1, have) for size, have in zip(wanted, found.shape[1:], strict=True)):
        raise _Unfit(f"{name}: rows of the shape {list(found.shape[1:])}; the model takes {list(wanted)}")
    dtype: np.dtype[Any] = np.dtype(_DTYPES[datatype])
    if np.issubdtype(dtype, np.integer) and not np.can_cast(found.dtype, dtype, "safe"):
        limits = np.iinfo(dtype)
        wrong = found[(found != np.rint(found)) | (found < limits.min) | (found > limits.max)]
        if wrong.size:
            raise _Unfit(f"{name}: {wrong[0]} is no {datatype}, which the model takes")
    return np.ascontiguousarray(found, dtype=dtype)
