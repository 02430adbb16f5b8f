"""Tensors as the protocol sends them, held against their own shape and datatype before any of it is believed."""

import math
from collections.abc import Sequence

import numpy as np

from services.backends import Array
from services.backends.datatypes import DATATYPES
from services.chassis.faults import InvalidField

MAX_DIMENSIONS = 16  # far more than a model has, and fewer than numpy refuses
BYTES, BF16 = "BYTES", "BF16"
HALVES = frozenset({"FP16", BF16})  # without a typed form
_DTYPES = {name: np.dtype(dtype) for name, dtype in DATATYPES.items()}
_BF16_DTYPE = np.dtype("<u2")
# Small integers travel as larger ones. Made into arrays of their own dtype at once, those out of range would wrap around.
_SENT_AS = {name: np.dtype(dtype) for dtype, names in (("<i4", ("INT8", "INT16")), ("<u4", ("UINT8", "UINT16"))) for name in names}


def count_elements(field: str, shape: Sequence[int]) -> int:
    """Elements of a tensor of this shape, counted without overflow. Raises InvalidField."""
    if not 0 < len(shape) <= MAX_DIMENSIONS or min(shape) < 1:
        raise InvalidField(f"{field}.shape", f"{list(shape[:8])} must be 1 to {MAX_DIMENSIONS} sizes of 1 or more, the rows first")
    return math.prod(shape)


def raw_array(field: str, datatype: str, shape: Sequence[int], data: bytes) -> Array:
    """Row-major little-endian bytes as an array, without a copy; it cannot be written to. BF16 widens to FP32. Raises InvalidField."""
    dtype = _BF16_DTYPE if datatype == BF16 else _dtype(field, datatype)
    count = count_elements(field, shape)
    if len(data) != count * dtype.itemsize:
        raise InvalidField(field, f"has {len(data)} bytes, shape and datatype make {count * dtype.itemsize}")
    array = np.frombuffer(data, dtype).reshape(shape)
    return _widened(array) if datatype == BF16 else array


def typed_array(field: str, datatype: str, shape: Sequence[int], values: Sequence[int | float | bool]) -> Array:
    """Elements of a typed field as an array. Raises InvalidField."""
    dtype = _dtype(field, datatype)
    count = count_elements(field, shape)
    if len(values) != count:
        raise InvalidField(field, f"has {len(values)} elements in the contents of {datatype}, its shape makes {count}")
    sent = np.array(values, _SENT_AS.get(datatype, dtype)).reshape(shape)
    array = sent.astype(dtype, copy=False)
    if array is not sent and not np.array_equal(array, sent):
        raise InvalidField(field, f"has an element out of the range of {datatype}")
    return array


def _dtype(field: str, datatype: str) -> "np.dtype[np.generic]":
    dtype = _DTYPES.get(datatype)
    if dtype is None:
        raise InvalidField(f"{field}.datatype", f"{datatype[:40]!r} is not among {', '.join([*DATATYPES, BF16, BYTES])}")
    return dtype


def _widened(array: Array) -> Array:
    """BF16 is the upper half of an FP32."""
    return np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
