"""A near cache: values of the cache service, kept in this process for as long as nobody changes them there."""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import grpc

from hone.cache.v1 import cache_pb2
from hone.cached import Living

OVERHEAD_BYTES = 300  # of an entry besides its key and value: headers of the bytes, its record, its place in the mapping
_PROOFS = 3  # asked for within the bound, so that one may be late
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0  # before a watch that broke is begun again


class Remote(Protocol):
    """The part of `hone.aio.CacheClient` that is used here."""

    async def get_living(self, namespace: str, keys: Sequence[bytes], *, timeout: float | None = None) -> list[Living | None]: ...

    async def put(
        self, namespace: str, entries: Mapping[bytes, bytes], *, ttl: float | None = None, timeout: float | None = None
    ) -> "list[cache_pb2.ItemStatus.ValueType]": ...

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None: ...

    async def clear(self, namespace: str) -> int: ...

    def watch(self, namespaces: Sequence[str] = ()) -> AsyncIterator[cache_pb2.WatchResponse]: ...


class NearCache:
    """`hone.aio.CacheClient`'s calls with a bounded memory in front, the least recently used going first.

        async with CacheClient("127.0.0.1:7003") as cache, NearCache(cache) as near:
            await near.put("n", {b"k": b"v"})
            await near.get("n", [b"k"])

    What `get` answers was the service's value at most `bound_s` ago, however the network fails: the service tells what changes
    (Watch), and memory answers only while the connection that it tells it over proves to be alive. Without a watch, which an older
    service does not have, an entry is answered from memory for `bound_s` and then asked for again. No entry outlives its end:
    the service tells how long it has left. A process reads its own writes. Made and used on one event loop.
    """

    def __init__(
        self,
        cache: Remote,
        *,
        max_bytes: int = 64 << 20,
        bound_s: float = 1.0,
        namespaces: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`namespaces` are those watched, all where none is named; naming them spares the news of the others.

        Raises ValueError for a `bound_s` that is not positive.
        """
        if bound_s <= 0:
            raise ValueError(f"bound_s must be positive, not {bound_s:g}")
        self.hits = 0
        self.misses = 0
        self._cache = cache
        self._memory = _Memory(max_bytes)
        self._bound_s = bound_s
        self._namespaces = tuple(namespaces)
        self._clock = clock
        self._pause = pause
        self._watched = False
        self._proven_s = float("-inf")  # the connection was alive then, and what was told before has arrived
        self._fetches: set[_Fetch] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follow()), loop.create_task(self._prove())]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._forget_all()
        for end in ends:
            if isinstance(end, Exception):  # and not cancelled: it had ended by a fault
                raise end

    @property
    def watching(self) -> bool:
        """Whether the service tells what changes at the moment."""
        return self._watched

    @property
    def held_bytes(self) -> int:
        """In memory, at most `max_bytes`."""
        return self._memory.held_bytes

    # Calls

    async def get(self, namespace: str, keys: Sequence[bytes], *, timeout: float | None = None) -> list[bytes | None]:
        """Each key's value, None where there is none; only what memory does not answer is asked for. Raises grpc.RpcError."""
        now = self._clock()
        values = [self._known(namespace, key, now) for key in keys]
        missing = [key for key, value in zip(keys, values, strict=True) if value is None]
        self.hits += len(keys) - len(missing)
        if not missing:
            return values
        self.misses += len(missing)
        fetched = await self._fetch(namespace, list(dict.fromkeys(missing)), timeout, now)
        return [fetched[key] if value is None else value for key, value in zip(keys, values, strict=True)]

    async def put(
        self, namespace: str, entries: Mapping[bytes, bytes], *, ttl: float | None = None, timeout: float | None = None
    ) -> "list[cache_pb2.ItemStatus.ValueType]":
        """Stores entries in the service; each one's status, in order. Raises grpc.RpcError.

        They come near with the next `get`: the service tells this process of its own writes too, and would take them away again.
        """
        try:
            return await self._cache.put(namespace, entries, ttl=ttl, timeout=timeout)
        finally:  # also after a failure: it may have been stored
            self._forget(namespace, entries)

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        """Raises grpc.RpcError."""
        try:
            await self._cache.delete(namespace, keys)
        finally:
            self._forget(namespace, keys)

    async def clear(self, namespace: str) -> int:
        """Empties a namespace; its new epoch. Raises grpc.RpcError."""
        try:
            return await self._cache.clear(namespace)
        finally:
            self._forget_namespace(namespace)

    # Memory

    def _known(self, namespace: str, key: bytes, now: float) -> bytes | None:
        entry = self._memory.get((namespace, key))
        if entry is None:
            return None
        proven = entry.watched and now - self._proven_s < self._bound_s
        return entry.value if now < entry.ends_s and (proven or now - entry.asked_s < self._bound_s) else None

    async def _fetch(self, namespace: str, keys: Sequence[bytes], timeout: float | None, now: float) -> Mapping[bytes, bytes | None]:
        watched = self._watched and (not self._namespaces or namespace in self._namespaces)
        fetch = _Fetch(namespace, set(keys))
        self._fetches.add(fetch)
        try:
            fetched = dict(zip(keys, await self._cache.get_living(namespace, keys, timeout=timeout), strict=True))
        finally:
            self._fetches.remove(fetch)
        for key, living in fetched.items():
            if living is not None and key in fetch.unchanged:
                ttl_left = self._bound_s if living.ttl_left is None else living.ttl_left
                self._memory.put((namespace, key), _Entry(living.value, now, now + ttl_left, watched))
        return {key: None if living is None else living.value for key, living in fetched.items()}

    def _forget(self, namespace: str, keys: Iterable[bytes]) -> None:
        keys = list(keys)
        for key in keys:
            self._memory.drop((namespace, key))
        for fetch in self._fetches:
            if fetch.namespace == namespace:
                fetch.unchanged.difference_update(keys)

    def _forget_namespace(self, namespace: str) -> None:
        self._memory.drop_namespace(namespace)
        for fetch in self._fetches:
            if fetch.namespace == namespace:
                fetch.unchanged.clear()

    def _forget_all(self) -> None:
        self._memory.clear()
        for fetch in self._fetches:
            fetch.unchanged.clear()

    # Coherence

    async def _follow(self) -> None:
        """Watches, again and again; an RPC failure ends one watch, any other this."""
        pause_s = _SHORTEST_PAUSE_S
        while True:
            try:
                async for told in self._cache.watch(self._namespaces):
                    pause_s = _SHORTEST_PAUSE_S
                    self._take(told)
            except grpc.RpcError:  # the service is away, or an older one: memory answers for `bound_s` only
                pass
            finally:
                self._watched = False
                self._forget_all()
            await self._pause(pause_s * random.uniform(0.8, 1.2))  # noqa: S311  unevenly: a service that is back has many watchers
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    def _take(self, told: cache_pb2.WatchResponse) -> None:
        match told.WhichOneof("what"):
            case "began":
                self._watched = True
            case "changed":
                self._forget(told.changed.namespace, told.changed.keys)
            case "cleared":
                self._forget_namespace(told.cleared)
            case _:  # more than could be told, or what only a later contract knows
                self._forget_all()

    async def _prove(self) -> None:
        """Asks for nothing over the watch's connection at a steady pace: one that was cut without a word would look quiet for ever."""
        namespace = self._namespaces[0] if self._namespaces else "near"
        while True:
            asked = self._clock()
            if self._watched:
                try:
                    await self._cache.get_living(namespace, (), timeout=self._bound_s)
                    self._proven_s = asked
                except grpc.RpcError:  # the last proof grows old, and memory stops answering
                    pass
            await self._pause(self._bound_s / _PROOFS)


@dataclass(eq=False, slots=True)
class _Fetch:
    """A call under way, and which of its keys nobody has changed since it began."""

    namespace: str
    unchanged: set[bytes]


@dataclass(frozen=True, slots=True)
class _Entry:
    """`watched`: changes since `asked_s` would have been told. `ends_s`: when its life in the service is over, or a little before."""

    value: bytes
    asked_s: float
    ends_s: float
    watched: bool


class _Memory:
    """Least recently used out first, bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.held_bytes = 0
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, bytes], _Entry] = OrderedDict()

    def get(self, name: tuple[str, bytes]) -> _Entry | None:
        entry = self._entries.get(name)
        if entry is not None:
            self._entries.move_to_end(name)
        return entry

    def put(self, name: tuple[str, bytes], entry: _Entry) -> None:
        self.drop(name)
        self._entries[name] = entry
        self.held_bytes += _size_bytes(name, entry)
        while self.held_bytes > self._max_bytes:
            self.drop(next(iter(self._entries)))

    def drop(self, name: tuple[str, bytes]) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.held_bytes -= _size_bytes(name, entry)

    def drop_namespace(self, namespace: str) -> None:
        """Goes through all entries: an index would cost memory for each of them."""
        for name in [name for name in self._entries if name[0] == namespace]:
            self.drop(name)

    def clear(self) -> None:
        self._entries.clear()
        self.held_bytes = 0


def _size_bytes(name: tuple[str, bytes], entry: _Entry) -> int:
    return len(name[1]) + len(entry.value) + OVERHEAD_BYTES
