"""The header of a safetensors file, checked by the format's own rules without reading a weight."""

import json
import math
from pathlib import Path
from typing import Any

from services.optimization.failures import BadModel

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2}
_BYTES |= {"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The parsed header and the bytes that follow it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise BadModel(f"{path.name}: truncated, or not safetensors: a header of {length} bytes in a file of {size}")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_refuse_duplicates)
        except (ValueError, RecursionError) as error:
            raise BadModel(f"{path.name}: the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise BadModel(f"{path.name}: the header is not a JSON object")
    return header, size - 8 - length


def _span(name: str, tensor: Any, path: Path) -> tuple[int, int]:
    """Begin and end of the tensor's bytes, which its dtype and shape must fill. Raises BadModel."""
    try:
        begin, end = tensor["data_offsets"]
        shape = tensor["shape"]
        if not all(type(value) is int and value >= 0 for value in (begin, end, *shape)):
            raise ValueError("negative or fractional numbers")
        if end - begin != _BYTES[tensor["dtype"]] * math.prod(shape):
            raise ValueError(f"{end - begin} bytes for {tensor['dtype']} {shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise BadModel(f"{path.name}: the tensor {name!r} is malformed: {error}") from error
    return begin, end


def tensors(path: Path) -> dict[str, dict[str, Any]]:
    """Each tensor's `dtype` and `shape` by name; their bytes fill the file without gap or overlap. Raises BadModel."""
    header, data_bytes = _header(path)
    header.pop("__metadata__", None)
    at = 0
    for begin, end in sorted(_span(name, tensor, path) for name, tensor in header.items()):
        if begin != at:
            raise BadModel(f"{path.name}: tensors overlap or leave a gap at byte {at}")
        at = end
    if at != data_bytes:
        raise BadModel(f"{path.name}: {data_bytes} bytes of data; its header describes {at}")
    if not header:
        raise BadModel(f"{path.name}: holds no tensor")
    return header
