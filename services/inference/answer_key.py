"""What makes two rows the same question, and an answer as bytes."""

import hashlib
import json
import struct
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from services.inference.layout import Values

_EPOCH = b"hone-answer-2"  # changes when the bytes below change their meaning
_CHECK_BYTES = 8
_SIZE = struct.Struct("<Q")


def answer_key(digest: str, values: Values, outputs: Sequence[str]) -> bytes:
    """32 bytes over everything that changes a row's answer, each part with its length.

    `digest` names the artifact, so another version, or another precision of the same model, never shares a key.
    Shape and dtype are in it: [2, 3] and [3, 2] of equal bytes are different questions.
    """
    state = _asked_of(digest, tuple(outputs)).copy()
    for name in sorted(values):
        array = values[name]
        state.update(_header(name, array.dtype.str, array.shape) + _SIZE.pack(array.nbytes))
        state.update(np.ascontiguousarray(array).data)
    return state.digest()


# What follows is the same for most rows, and took more time than the rows' own bytes.


@lru_cache(maxsize=256)
def _asked_of(digest: str, outputs: tuple[str, ...]) -> "hashlib.blake2b":
    state = hashlib.blake2b(digest_size=32)
    for part in (_EPOCH, digest.encode(), *(name.encode() for name in outputs)):
        state.update(struct.pack("<I", len(part)) + part)
    return state


@lru_cache(maxsize=1024)
def _header(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    header = json.dumps([name, dtype, shape]).encode()
    return struct.pack("<I", len(header)) + header


def encode(outputs: Values) -> bytes:
    """A row's outputs as bytes: checksum, header, then the arrays row-major."""
    header = json.dumps([[name, array.dtype.str, array.shape] for name, array in outputs.items()]).encode()
    body = b"".join([struct.pack("<I", len(header)), header, *(np.ascontiguousarray(array).tobytes() for array in outputs.values())])
    return _checksum(body) + body


def decode(data: bytes) -> Values | None:
    """The outputs, or None where the bytes are not what `encode` made: a damaged answer is no answer."""
    body = memoryview(data)[_CHECK_BYTES:]
    if len(data) < _CHECK_BYTES + 4 or _checksum(body) != data[:_CHECK_BYTES]:
        return None
    (size,) = struct.unpack_from("<I", body)
    offset, outputs = 4 + size, {}
    for name, dtype, shape in json.loads(bytes(body[4:offset])):
        count = int(np.prod(shape, dtype=np.int64))
        outputs[name] = np.frombuffer(body, np.dtype(dtype), count, offset).reshape(shape)
        offset += outputs[name].nbytes
    return outputs


def _checksum(body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECK_BYTES).digest()
