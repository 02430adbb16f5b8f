"""What nearer caches must forget: told to each watcher, in the order in which it happened."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from services.cache.store import Entry, Namespace, Stats, Store
from services.chassis import faults

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cleared:
    """Every entry of the namespace."""

    namespace: str


@dataclass(frozen=True, slots=True)
class Changed:
    """These entries: deleted, or stored and so perhaps replaced."""

    namespace: str
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """More has happened than was kept for the watcher."""


Change = Cleared | Changed
Event = Change | Lost


class Watcher:
    """One reader's events, in order. A reader that is slow by more than `max_keys` keys gets `Lost` in their place."""

    def __init__(self, namespaces: Collection[str], max_keys: int) -> None:
        self._namespaces = frozenset(namespaces)
        self._max_keys = max_keys
        self._untold: deque[Event] = deque()
        self._keys = 0
        self._ended = False
        self._woken = asyncio.Event()

    def watches(self, namespace: str) -> bool:
        return not self._namespaces or namespace in self._namespaces

    def tell(self, change: Change) -> None:
        self._keys += _weight(change)
        self._untold.append(change)
        if self._keys > self._max_keys:
            self._untold = deque([Lost()])
            self._keys = 0
        self._woken.set()

    def end(self) -> None:
        """Lets the reader have what was told and come to its end."""
        self._ended = True
        self._woken.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while self._untold:
                event = self._untold.popleft()
                self._keys -= _weight(event)
                yield event
            if self._ended:
                return
            self._woken.clear()
            await self._woken.wait()


class Invalidations:
    """Passes on what changes to all who watch it."""

    def __init__(self, max_untold_keys: int) -> None:
        self._max_untold_keys = max_untold_keys
        self._watchers: set[Watcher] = set()
        self._ended = False
        self._interrupted = False

    @contextmanager
    def watching(self, namespaces: Collection[str]) -> Iterator[Watcher]:
        """A watcher for the length of the block, of all namespaces where none is given: it misses nothing from here on.

        Raises `faults.Unavailable` while that cannot be promised.
        """
        if self._interrupted:
            raise faults.Unavailable("what other replicas change cannot be heard now; try again")
        watcher = Watcher(namespaces, self._max_untold_keys)
        if self._ended:
            watcher.end()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def tell(self, change: Change) -> None:
        for watcher in self._watchers:
            if watcher.watches(change.namespace):
                watcher.tell(change)

    def interrupt(self) -> None:
        """Ends all watching until `resume`: something may change that is not told here."""
        self._interrupted = True
        for watcher in self._watchers:
            watcher.end()

    def resume(self) -> None:
        """From here on everything is told again."""
        self._interrupted = False

    def end(self) -> None:
        """Ends all watching, now and from now on."""
        self._ended = True
        for watcher in self._watchers:
            watcher.end()

    @property
    def watchers(self) -> int:
        return len(self._watchers)


class AnnouncedStore:
    """A store whose changes are told once they are made, and not before: who looked up in between would keep the old value.

    A change that its caller gives up may be made all the same, so it goes on without the caller and is told at its end.
    """

    def __init__(self, store: Store, invalidations: Invalidations) -> None:
        self._store = store
        self._invalidations = invalidations

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self._store.get(namespace, keys)

    async def lives(self, namespace: str, keys: Sequence[bytes]) -> list[float]:
        return await self._store.lives(namespace, keys)

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        # All keys, also of entries that were refused: whether an entry was there before is not known, and telling too much is right.
        changed = Changed(namespace, tuple(entry.key for entry in entries))
        return await self._told(self._store.put(namespace, entries, epoch=epoch), changed)

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        await self._told(self._store.delete(namespace, keys), Changed(namespace, tuple(keys)))

    async def clear(self, namespace: str) -> int:
        return await self._told(self._store.clear(namespace), Cleared(namespace))

    async def describe(self, namespace: str) -> Namespace:
        return await self._store.describe(namespace)

    async def configure(self, namespace: str, ttl_s: float | None) -> None:
        await self._store.configure(namespace, ttl_s)

    def stats(self) -> Stats:
        return self._store.stats()

    async def _told(self, making: Coroutine[Any, Any, T], change: Change) -> T:
        task = asyncio.get_running_loop().create_task(making)
        task.add_done_callback(lambda _: self._invalidations.tell(change))
        return await asyncio.shield(task)


def _weight(event: Event) -> int:
    if isinstance(event, Lost):
        return 0  # it stands for what is kept no more
    return max(1, len(event.keys)) if isinstance(event, Changed) else 1
