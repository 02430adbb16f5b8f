"""A store in this process's memory: for tests, and where nothing need survive a restart."""

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.cache.store import Entry, Namespace, Stats

OVERHEAD_BYTES = 400  # covers the key's and the value's headers, the record and its place in the dict
_FREED_A_CALL = 64  # entries of cleared namespaces; freeing all at the clear would hold every caller up


@dataclass(slots=True)
class _Kept:
    value: bytes
    expires_s: float
    used: int  # number of the last use: the lower, the longer ago


@dataclass(slots=True)
class _Space:
    """A namespace: its entries, the least recently used first."""

    about: Namespace = field(default_factory=Namespace)
    kept: OrderedDict[bytes, _Kept] = field(default_factory=OrderedDict)
    bytes: int = 0
    queued: bool = False  # for eviction


class MemoryStore:
    """Least recently used goes first once keys, values and their overhead pass `max_bytes`."""

    def __init__(self, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._spaces: dict[str, _Space] = {}
        self._oldest: list[tuple[int, str]] = []  # a heap with one item per space that holds anything, never above its oldest use
        self._cleared: deque[OrderedDict[bytes, _Kept]] = deque()
        self._uses = self._entries = self._bytes = self._evictions = 0

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        self._free()
        space = self._spaces.get(namespace)
        now = self._clock()
        return [None if space is None else self._look_up(space, key, now) for key in keys]

    async def lives(self, namespace: str, keys: Sequence[bytes]) -> list[float]:
        space, now = self._spaces.get(namespace, _Space()), self._clock()
        return [max(0.0, space.kept[key].expires_s - now) if key in space.kept else 0.0 for key in keys]

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        self._free()
        space = self._space(namespace)
        if epoch not in (None, space.about.epoch):
            return [False] * len(entries)
        now = self._clock()
        return [self._keep(namespace, space, entry, now) for entry in entries]

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        space = self._space(namespace)
        for key in keys:
            self._drop(space, key)

    async def clear(self, namespace: str) -> int:
        space = self._space(namespace)
        self._bytes -= space.bytes
        self._entries -= len(space.kept)
        self._cleared.append(space.kept)
        space.kept, space.bytes = OrderedDict(), 0
        space.about = Namespace(space.about.epoch + 1, space.about.ttl_s)
        return space.about.epoch

    async def describe(self, namespace: str) -> Namespace:
        space = self._spaces.get(namespace)
        return Namespace() if space is None else space.about

    async def configure(self, namespace: str, ttl_s: float | None) -> None:
        space = self._space(namespace)
        space.about = Namespace(space.about.epoch, ttl_s)

    def stats(self) -> Stats:
        return Stats(evictions=self._evictions, entries=self._entries, bytes=self._bytes)

    def _space(self, namespace: str) -> _Space:
        return self._spaces.setdefault(namespace, _Space())

    def _look_up(self, space: _Space, key: bytes, now: float) -> bytes | None:
        kept = space.kept.get(key)
        if kept is None:
            return None
        if kept.expires_s <= now:
            self._drop(space, key)
            return None
        self._uses += 1
        kept.used = self._uses
        space.kept.move_to_end(key)
        return kept.value

    def _keep(self, namespace: str, space: _Space, entry: Entry, now: float) -> bool:
        size_bytes = _size_bytes(entry.key, entry.value)
        if size_bytes > self._max_bytes:
            return False
        self._drop(space, entry.key)
        self._uses += 1
        space.kept[entry.key] = _Kept(entry.value, now + entry.ttl_s, self._uses)
        self._count(space, 1, size_bytes)
        if not space.queued:
            space.queued = True
            heapq.heappush(self._oldest, (self._uses, namespace))
        while self._bytes > self._max_bytes:
            self._evict()
        return True

    def _evict(self) -> None:
        """Drops the oldest of the space at the top, or puts the top right: a space's oldest may have been used or dropped since."""
        used, namespace = self._oldest[0]
        space = self._spaces[namespace]
        key = next(iter(space.kept), None)
        if key is None:
            space.queued = False
            heapq.heappop(self._oldest)
        elif space.kept[key].used > used:
            heapq.heapreplace(self._oldest, (space.kept[key].used, namespace))
        else:
            self._drop(space, key)
            self._evictions += 1

    def _drop(self, space: _Space, key: bytes) -> None:
        kept = space.kept.pop(key, None)
        if kept is not None:
            self._count(space, -1, -_size_bytes(key, kept.value))

    def _count(self, space: _Space, entries: int, size_bytes: int) -> None:
        self._entries += entries
        self._bytes += size_bytes
        space.bytes += size_bytes

    def _free(self) -> None:
        for _ in range(_FREED_A_CALL if self._cleared else 0):
            if not self._cleared[0]:
                self._cleared.popleft()
                return
            self._cleared[0].popitem()


def _size_bytes(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + OVERHEAD_BYTES
