"""A store that refuses a call at once when too many wait already, so that a slow disk does not fill memory with callers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from services.cache.store import Entry, Namespace, Stats, Store
from services.chassis import faults

RETRY_AFTER_S = 0.05  # some tens of batches later; a cache that is worth waiting longer for is none


class BoundedStore:
    """At most `max_waiting` calls run or wait; past that, `faults.Overloaded`."""

    def __init__(self, store: Store, max_waiting: int) -> None:
        self._store = store
        self._max_waiting = max_waiting
        self._waiting = 0

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._place():
            return await self._store.get(namespace, keys)

    async def lives(self, namespace: str, keys: Sequence[bytes]) -> list[float]:
        with self._place():
            return await self._store.lives(namespace, keys)

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        with self._place():
            return await self._store.put(namespace, entries, epoch=epoch)

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        with self._place():
            await self._store.delete(namespace, keys)

    async def clear(self, namespace: str) -> int:
        with self._place():
            return await self._store.clear(namespace)

    async def describe(self, namespace: str) -> Namespace:
        return await self._store.describe(namespace)  # no place: it is asked for on behalf of calls that have or had one

    async def configure(self, namespace: str, ttl_s: float | None) -> None:
        with self._place():
            await self._store.configure(namespace, ttl_s)

    def stats(self) -> Stats:
        return self._store.stats()

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._waiting >= self._max_waiting:
            raise faults.Overloaded(f"{self._waiting} calls wait for the store already", RETRY_AFTER_S)
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
