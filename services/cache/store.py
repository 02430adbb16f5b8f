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

    A bare store tells what only it can see and leaves the rest at 0: `MeteredStore` adds the traffic (`hits` to `deletes`),
    `SingleFlight` the leases.
    """

    hits: int = 0
    misses: int = 0
    puts: int = 0
    deletes: int = 0
    evictions: int = 0
    corrupt: int = 0
    entries: int = 0  # those that are expired or cleared and not removed yet included
    bytes: int = 0
    leases: int = 0
    shared: int = 0
    leases_lost: int = 0


@dataclass(frozen=True, slots=True)
class Namespace:
    """What holds for all entries of a namespace.

    `epoch` grows by one with each clear; `ttl_s` is the life of entries that bring none, None for the server's default.
    """

    epoch: int = 0
    ttl_s: float | None = None


class Store(Protocol):
    """Bytes under (namespace, key). It behaves as a dict that may forget anything, and never makes anything up.

    Namespace, key, value and batch limits are the door's business; a store takes what it is given.
    """

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The live values in the order asked; None where there is none, or none that can be read."""
        ...

    async def lives(self, namespace: str, keys: Sequence[bytes]) -> list[float]:
        """How many seconds each key's entry has left; 0 where there is none, or none whose end can be told."""
        ...

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        """Keeps entries, the last of equal keys winning; tells for each whether it was taken. A refused one changes nothing.

        With `epoch` nothing is kept unless the namespace still has that one.
        """
        ...

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        """Forgets keys. Raises `faults.Unavailable` when that cannot be made sure of."""
        ...

    async def clear(self, namespace: str) -> int:
        """Forgets a namespace, all of it at one moment and in a time that does not grow with it; the new epoch.

        Raises `faults.Unavailable` when that cannot be made sure of.
        """
        ...

    async def describe(self, namespace: str) -> Namespace:
        """What holds for a namespace, also of one never seen."""
        ...

    async def configure(self, namespace: str, ttl_s: float | None) -> None:
        """Sets the life of entries put from now on that bring none. Raises `faults.Unavailable` when it cannot be kept."""
        ...

    def stats(self) -> Stats:
        """What is known without waiting; safe to call from any thread."""
        ...
