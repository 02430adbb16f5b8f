"""What a store of bytes is. Disk, memory and the decorators are all this one type."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """A value to keep under a key for at most `ttl_s` seconds."""

    key: bytes
    value: bytes
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the store was opened, and what it holds now.

    A bare store tells what only it can see and leaves the traffic (`hits` to `deletes`) at 0; `MeteredStore` adds that.
    """

    hits: int = 0
    misses: int = 0
    puts: int = 0
    deletes: int = 0
    evictions: int = 0
    corrupt: int = 0
    entries: int = 0  # expired ones that nothing has removed yet included
    bytes: int = 0


class Store(Protocol):
    """Bytes under (namespace, key). It behaves as a dict that may forget anything, and never makes anything up.

    Namespace, key, value and batch limits are the door's business; a store takes what it is given.
    """

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The live values in the order asked; None where there is none, or none that can be read."""
        ...

    async def put(self, namespace: str, entries: Sequence[Entry]) -> list[bool]:
        """Keeps entries, the last of equal keys winning; tells for each whether it was taken. A refused one changes nothing."""
        ...

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        """Forgets keys. Raises `faults.Unavailable` when that cannot be made sure of."""
        ...

    async def clear(self, namespace: str) -> int:
        """Forgets a namespace, all of it at one moment, and tells how many live entries that were.

        Raises `faults.Unavailable` when that cannot be made sure of.
        """
        ...

    def stats(self) -> Stats:
        """What is known without waiting; safe to call from any thread."""
        ...
