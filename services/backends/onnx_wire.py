"""What must be known of an ONNX file before an engine opens it, read from the wire.

Serving needs no onnx package for this, no weight is copied, and the file may be larger than memory. Field numbers are those of
onnx.proto (ONNX IR specification).
"""

from collections.abc import Iterator

_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}

_OPSET_IMPORT, _DOMAIN = 8, 1
_EXTERNAL_DATA = 13  # of TensorProto

# Where tensors can be: message -> field -> message of that field.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a varint of more than ten bytes")


def _skip(data: memoryview, at: int, wire_type: int) -> int:
    if wire_type == 0:
        return _varint(data, at)[1]
    if wire_type not in _FIXED_BYTES:
        raise ValueError(f"wire type {wire_type}")
    return at + _FIXED_BYTES[wire_type]


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of one message, unopened. Raises ValueError or IndexError when malformed."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 != _LENGTH_DELIMITED:
            at = _skip(data, at, key & 7)
            continue
        size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError("the file ends within a field")
        yield key >> 3, data[at : at + size]
        at += size


def operator_domains(model: memoryview) -> set[str]:
    """Domains that a ModelProto imports; it cannot use one that it does not import. Raises ValueError or IndexError."""
    imports = (payload for field, payload in _fields(model) if field == _OPSET_IMPORT)
    return {next((bytes(value).decode() for field, value in _fields(entry) if field == _DOMAIN), "") for entry in imports}


def has_external_data(message: memoryview, kind: str = "model") -> bool:
    """Whether a tensor anywhere in a ModelProto lies in another file. Raises ValueError, IndexError or RecursionError."""
    children = _CHILDREN[kind]
    for field, payload in _fields(message):
        if kind == "tensor" and field == _EXTERNAL_DATA:
            return True
        if field in children and has_external_data(payload, children[field]):
            return True
    return False
