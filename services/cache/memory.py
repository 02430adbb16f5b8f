"""A store in this process's memory: for tests, and where nothing need survive a restart."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.cache.store import Entry, Stats

OVERHEAD_BYTES = 400  # measured: key tuple, bytes headers, record and its place in the dict


@dataclass(frozen=True, slots=True)
class _Kept:
    value: bytes
    expires_s: float


class MemoryStore:
    """Least recently used goes first once keys, values and their overhead pass `max_bytes`."""

    def __init__(self, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._kept: OrderedDict[tuple[str, bytes], _Kept] = OrderedDict()
        self._bytes = 0
        self._evictions = 0

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        now = self._clock()
        return [self._look_up((namespace, key), now) for key in keys]

    async def put(self, namespace: str, entries: Sequence[Entry]) -> list[bool]:
        now = self._clock()
        return [self._keep((namespace, entry.key), entry.value, now + entry.ttl_s) for entry in entries]

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._drop((namespace, key))

    async def clear(self, namespace: str) -> int:
        now = self._clock()
        cleared = [name for name in self._kept if name[0] == namespace]
        return sum(self._drop(name).expires_s > now for name in cleared)

    def stats(self) -> Stats:
        return Stats(evictions=self._evictions, entries=len(self._kept), bytes=self._bytes)

    def _look_up(self, name: tuple[str, bytes], now: float) -> bytes | None:
        kept = self._kept.get(name)
        if kept is None:
            return None
        if kept.expires_s <= now:
            self._drop(name)
            return None
        self._kept.move_to_end(name)
        return kept.value

    def _keep(self, name: tuple[str, bytes], value: bytes, expires_s: float) -> bool:
        size_bytes = _size_bytes(name, value)
        if size_bytes > self._max_bytes:
            return False
        self._drop(name)
        self._kept[name] = _Kept(value, expires_s)
        self._bytes += size_bytes
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))
            self._evictions += 1
        return True

    def _drop(self, name: tuple[str, bytes]) -> _Kept:
        kept = self._kept.pop(name, _NOTHING)
        if kept is not _NOTHING:
            self._bytes -= _size_bytes(name, kept.value)
        return kept


_NOTHING = _Kept(b"", 0)


def _size_bytes(name: tuple[str, bytes], value: bytes) -> int:
    return len(name[1]) + len(value) + OVERHEAD_BYTES
