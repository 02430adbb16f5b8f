"""Named arrays over a stream socket: a JSON header, then each array's bytes in its order. Nothing is ever unpickled."""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from services.backends import Array
from services.backends.datatypes import DATATYPES

MOST_HEADER_BYTES = 1 << 20
_LENGTH = struct.Struct("<I")
_ARRAYS = "arrays"
_DTYPES = frozenset(DATATYPES.values())

Header = dict[str, Any]


class BrokenFrame(Exception):
    """The peer is gone, or wrote what is no frame: nothing more can be read from it."""


def send(stream: socket.socket, header: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
    """Raises OSError, and ValueError before anything is sent where an array's dtype is none of the protocol's."""
    arrays = arrays or {}
    specs = [(name, _dtype(name, array.dtype.str), array.shape) for name, array in arrays.items()]
    encoded = json.dumps({**header, _ARRAYS: specs}).encode()
    stream.sendall(_LENGTH.pack(len(encoded)) + encoded)
    for array in arrays.values():
        stream.sendall(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def receive(stream: socket.socket) -> tuple[Header, dict[str, Array]]:
    """One frame; the arrays own their memory. Raises OSError, BrokenFrame."""
    try:
        (size,) = _LENGTH.unpack(_read(stream, bytearray(_LENGTH.size)))
        if size > MOST_HEADER_BYTES:
            raise BrokenFrame(f"a header of {size} bytes")
        header: Header = json.loads(_read(stream, bytearray(size)))
        return header, {name: _array(stream, name, dtype, shape) for name, dtype, shape in header.pop(_ARRAYS)}
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenFrame(f"not a frame: {error}") from error


def _dtype(name: str, dtype: str) -> str:
    if dtype not in _DTYPES:
        raise ValueError(f"{name!r} has the dtype {dtype}")
    return dtype


def _array(stream: socket.socket, name: str, dtype: str, shape: list[int]) -> Array:
    array = np.empty(shape, _dtype(name, dtype))
    _read(stream, array.reshape(-1).view(np.uint8))
    return array


def _read(stream: socket.socket, into: Any) -> Any:
    """Fills a writable buffer of bytes."""
    view = memoryview(into)
    while len(view):
        count = stream.recv_into(view, 0, socket.MSG_WAITALL)
        if not count:
            raise BrokenFrame("the peer is gone")
        view = view[count:]
    return into
