"""Remembered answers in the cache service, where other replicas see them too."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Protocol

import structlog

from services.chassis import tracing
from services.inference.answer_key import decode, encode
from services.inference.layout import Values

log = structlog.get_logger("hone.answers")

_CALL_KEYS = 1024  # the cache service's own limit for a call, unless it is set lower; a larger call would be refused whole
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


class SharedCache(Protocol):
    """The part of the cache client that is used here."""

    async def get(self, namespace: str, keys: Sequence[bytes], *, timeout: float) -> list[bytes | None]: ...

    async def put(self, namespace: str, entries: Mapping[bytes, bytes], *, ttl: float, timeout: float) -> object: ...


class SharedAnswers:
    """The cache service as other replicas see it too.

    Lookups that come while one is under way share the next call, and so do stores: one call in flight for each, so the
    cost per row falls as the load grows. A cache that fails or is slow is left alone for a while, longer each time.
    """

    def __init__(
        self, cache: SharedCache, *, timeout_s: float, ttl_s: float, max_pending: int = 4096, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cache = cache
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._max_pending = max_pending
        self._clock = clock
        self._asked: dict[str, _Lot] = {}
        self._stores: dict[str, dict[bytes, bytes]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pause_s = _SHORTEST_PAUSE_S
        self._paused_until = 0.0

    async def get(self, namespace: str, keys: Sequence[bytes]) -> Mapping[bytes, Values]:
        """What is known of `keys`, within the time-out; a failing cache knows nothing."""
        if self.paused:
            return {}
        lot = self._asked.setdefault(namespace, _Lot())
        lot.keys.update(dict.fromkeys(keys))
        self._start(f"get {namespace}", self._ask, namespace)
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await asyncio.shield(lot.found)
        except TimeoutError:
            self._failed("time-out")
            return {}
        return {key: found[key] for key in keys if key in found}

    def put(self, namespace: str, outputs: Mapping[bytes, Values]) -> None:
        """Stores later, off the caller's path; dropped where too much waits already or the cache fails."""
        if self.paused or sum(map(len, self._stores.values())) + len(outputs) > self._max_pending:
            return
        self._stores.setdefault(namespace, {}).update({key: encode(values) for key, values in outputs.items()})
        self._start(f"put {namespace}", self._store, namespace)

    @property
    def paused(self) -> bool:
        """Whether the cache is left alone for the moment."""
        return self._clock() < self._paused_until

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _start(self, name: str, work: Callable[[str, str], Coroutine[None, None, None]], namespace: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = asyncio.get_running_loop().create_task(work(name, namespace))

    async def _ask(self, name: str, namespace: str) -> None:
        try:
            while (lot := self._asked.pop(namespace, None)) is not None:
                found: dict[bytes, Values] = {}
                with tracing.within(lot.trace):
                    for keys in _slices(list(lot.keys)):
                        found |= await self._lookup(namespace, keys)
                lot.answer(found)
        finally:
            del self._tasks[name]  # here, not in a callback: nobody may add a lot in between

    async def _lookup(self, namespace: str, keys: Sequence[bytes]) -> Mapping[bytes, Values]:
        try:
            values = await self._cache.get(namespace, keys, timeout=self._timeout_s)
            decoded = {key: decode(value) for key, value in zip(keys, values, strict=True) if value is not None}
        except Exception as error:  # a cache outage is a miss, whatever it looks like
            self._failed(repr(error))
            return {}
        self._pause_s = _SHORTEST_PAUSE_S
        return {key: outputs for key, outputs in decoded.items() if outputs is not None}

    async def _store(self, name: str, namespace: str) -> None:
        try:
            while entries := self._stores.pop(namespace, None):
                for keys in _slices(list(entries)):
                    await self._put(namespace, {key: entries[key] for key in keys})
        finally:
            del self._tasks[name]

    async def _put(self, namespace: str, entries: Mapping[bytes, bytes]) -> None:
        try:
            await self._cache.put(namespace, entries, ttl=self._ttl_s, timeout=max(1.0, self._timeout_s))
        except Exception as error:  # as above; the entries are lost, which a cache may
            self._failed(repr(error))

    def _failed(self, reason: str) -> None:
        now = self._clock()
        if now < self._paused_until:
            return
        self._paused_until = now + self._pause_s
        log.warning("the cache does not answer; going on without it", reason=reason[:200], pause_s=self._pause_s)
        self._pause_s = min(_LONGEST_PAUSE_S, self._pause_s * 2)


def _slices(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + _CALL_KEYS] for start in range(0, len(keys), _CALL_KEYS))


class _Lot:
    """Keys of several callers that one call will ask for."""

    def __init__(self) -> None:
        self.keys: dict[bytes, None] = {}
        self.trace = tracing.current()  # of the first who asks: the task serves many calls in turn, and a call has one parent
        self.found: asyncio.Future[Mapping[bytes, Values]] = asyncio.get_running_loop().create_future()

    def answer(self, found: Mapping[bytes, Values]) -> None:
        if not self.found.done():
            self.found.set_result(found)
