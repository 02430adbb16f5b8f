"""What jobs found out about a model, remembered by the cache service: named arrays under the digest of all that shapes them."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors.numpy import load, save

from services.optimization.environment import cpu_features, cpu_model, library_versions
from services.optimization.kept import digest_of
from services.optimization.remembered.link import Link
from services.repository.manifest import Frozen

SLICE_BYTES = 256 << 10  # of one value; the cache service takes larger ones, unless it is set lower
LARGEST_BYTES = 256 << 20  # what is larger would put out too much else

_LAYOUT = 2  # of what lies in the cache; rises whenever its meaning changes
_CALL_SLICES = 32

Arrays = Mapping[str, NDArray[Any]]


class _Head(Frozen):
    """Lies under the digest itself, and tells what the slices make together."""

    slices: int = Field(ge=1, le=LARGEST_BYTES // SLICE_BYTES)
    sha256: str


class Remembered:
    """One namespace. A cache that fails, forgets or damages costs time alone."""

    def __init__(self, link: Link, namespace: str) -> None:
        self._link = link
        self._namespace = namespace

    @property
    def works(self) -> bool:
        """Whether asking has any point: digests of whole models are not for nothing."""
        return self._link.works

    def recall(self, kind: str, describe: Callable[[], Mapping[str, Any]], compute: Callable[[], Arrays]) -> Arrays:
        """What `compute` answers, or answered before for the same `describe`: plain JSON of all that shapes it but the libraries."""
        if not self.works:
            return compute()
        digest = digest_for(kind, describe())
        found = self.find(digest)
        if found is None:
            found = compute()
            self.keep(digest, found)
        return found

    def find(self, digest: str) -> Arrays | None:
        """None where they are not known whole."""
        head = self._head(digest)
        if head is None:
            return None
        content = bytearray()
        for keys in _calls([_key(digest, number) for number in range(head.slices)]):
            parts = [part for part in self._link.get(self._namespace, keys) if part is not None]
            if len(parts) < len(keys):
                return None
            content += b"".join(parts)
        return load(bytes(content)) if hashlib.sha256(content).hexdigest() == head.sha256 else None

    def _head(self, digest: str) -> _Head | None:
        (found,) = self._link.get(self._namespace, [digest.encode()])
        try:
            return _Head.model_validate_json(found) if found is not None else None
        except ValidationError:  # damaged, which is a miss
            return None

    def keep(self, digest: str, arrays: Arrays) -> None:
        """Nothing where they are too large or the cache fails."""
        if not self.works or sum(array.nbytes for array in arrays.values()) > LARGEST_BYTES - SLICE_BYTES:  # a slice for their names
            return
        content = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
        slices = {_key(digest, number): part for number, part in enumerate(_slices(content))}
        for keys in _calls(list(slices)):
            self._link.put(self._namespace, {key: slices[key] for key in keys})
        # Last: whoever finds it finds the rest, or knows by the digest that he did not.
        head = _Head(slices=len(slices), sha256=hashlib.sha256(content).hexdigest())
        self._link.put(self._namespace, {digest.encode(): head.model_dump_json().encode()})


NOTHING = Remembered(Link(None), "")


def namespace_of(reference: str) -> str:
    """Of what is known of a model's version, NAME@VERSION."""
    return f"optimization/{reference}"


def digest_for(kind: str, content: Mapping[str, Any]) -> str:
    """Of plain JSON, and of this machine's libraries."""
    return digest_of({"kind": kind, "layout": _LAYOUT, "content": content, "libraries": dict(library_versions())})


def processor() -> list[str]:
    """For `describe`, where floating-point numbers are summed: another processor's sums differ in their last digits."""
    return [cpu_model(), *sorted(cpu_features())]


def _key(digest: str, number: int) -> bytes:
    return f"{digest}/{number}".encode()


def _slices(content: bytes) -> Iterator[bytes]:
    return (content[start : start + SLICE_BYTES] for start in range(0, len(content), SLICE_BYTES))


def _calls(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + _CALL_SLICES] for start in range(0, len(keys), _CALL_SLICES))
