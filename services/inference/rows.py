"""Named tensors of a request to rows, checked against the model's inputs."""

from collections.abc import Mapping, Set

import numpy as np

from services.backends import Array
from services.backends.datatypes import datatype_of
from services.chassis.faults import InvalidField
from services.inference.layout import Values
from services.repository.manifest import Signature, TensorSpec

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"


def tensor_rows(signature: Signature, inputs: Mapping[str, Array], vocabulary_size: int) -> list[Values]:
    """Rows of a request's tensors; `vocabulary_size` bounds token ids. Raises InvalidField."""
    if signature.task.takes_text:
        return _token_rows(signature, inputs, vocabulary_size)
    return _plain_rows(signature, inputs)


def _plain_rows(signature: Signature, inputs: Mapping[str, Array]) -> list[Values]:
    specs = {spec.name: spec for spec in signature.inputs}
    _check_names(inputs, required=specs.keys(), allowed=specs.keys())
    for name, array in inputs.items():
        _check_shape(specs[name], array)
    count = _count_rows(inputs)
    return [{name: array[index] for name, array in inputs.items()} for index in range(count)]


def _token_rows(signature: Signature, inputs: Mapping[str, Array], vocabulary_size: int) -> list[Values]:
    """Padding is cut off, so that a row is the same question however its sender padded it."""
    _check_names(inputs, required={IDS}, allowed={IDS, MASK, TYPES})
    ids = inputs[IDS]
    for name, array in inputs.items():
        _check_shape(TensorSpec(name=name, datatype="INT64", shape=(-1, -1)), array)
        if array.shape != ids.shape:
            raise InvalidField(f"inputs[{name}].tensor.shape", f"{list(array.shape)} differs from that of {IDS}, {list(ids.shape)}")
    mask = inputs.get(MASK, np.ones_like(ids))
    lengths = _lengths(mask)
    if signature.max_tokens and lengths.max() > signature.max_tokens:
        raise InvalidField(f"inputs[{IDS}].tensor.shape", f"a row has {int(lengths.max())} tokens, the model takes {signature.max_tokens}")
    if TYPES in inputs and (inputs[TYPES] * mask).any():
        raise InvalidField(f"inputs[{TYPES}].tensor.data", "must be zeros: sentence pairs are not served")
    if ids.min() < 0 or ids.max() >= vocabulary_size:  # the backend would fail, and its batch-mates with it
        raise InvalidField(f"inputs[{IDS}].tensor.data", f"token ids must be 0 to {vocabulary_size - 1}")
    return [{IDS: row[:length]} for row, length in zip(ids, lengths, strict=True)]


def _lengths(mask: Array) -> Array:
    """Tokens of each row. Raises InvalidField unless every row is ones, then zeros."""
    lengths: Array = mask.sum(axis=1)
    if not np.array_equal(mask, np.arange(mask.shape[1]) < lengths[:, None]):
        raise InvalidField(f"inputs[{MASK}].tensor.data", "must be ones, then zeros: rows are padded on the right")
    if not lengths.all():
        raise InvalidField(f"inputs[{MASK}].tensor.data", f"row {int(np.argmin(lengths))} has no token")
    return lengths


def _check_names(inputs: Mapping[str, Array], *, required: Set[str], allowed: Set[str]) -> None:
    for name in sorted(required):
        if name not in inputs:
            raise InvalidField("inputs", f"{name!r} is missing")
    for name in inputs:
        if name not in allowed:
            raise InvalidField(f"inputs[{name}].name", f"is not among the model's inputs {', '.join(sorted(allowed))}")


def _check_shape(spec: TensorSpec, array: Array) -> None:
    if datatype_of(array) != spec.datatype:
        raise InvalidField(f"inputs[{spec.name}].tensor.datatype", f"{datatype_of(array)} given, the model takes {spec.datatype}")
    fits = array.ndim == len(spec.shape) and all(want in (-1, have) for want, have in zip(spec.shape[1:], array.shape[1:], strict=True))
    if not fits or 0 in array.shape:
        raise InvalidField(f"inputs[{spec.name}].tensor.shape", f"{list(array.shape)} given, the model takes {list(spec.shape)}")


def _count_rows(inputs: Mapping[str, Array]) -> int:
    counts = {name: array.shape[0] for name, array in inputs.items()}
    if len(set(counts.values())) > 1:
        raise InvalidField("inputs", f"differ in rows: {', '.join(f'{name} has {count}' for name, count in counts.items())}")
    return int(next(iter(counts.values())))
