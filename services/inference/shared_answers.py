"""Remembered answers in the cache service, where other replicas see them too."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.chassis import tracing
from services.inference.answer_key import decode
from services.inference.layout import Values
from services.inference.patience import Patience
from services.inference.shared_stores import SharedStores, StoringCache, slices


class Looked(Protocol):
    """What the cache tells of a key: its value, the right to compute it (a lease above 0), or that another caller has that right."""

    @property
    def value(self) -> bytes | None: ...

    @property
    def lease(self) -> int: ...

    @property
    def leased(self) -> bool: ...


class SharedCache(StoringCache, Protocol):
    """The part of the cache client that is used here."""

    async def get_or_lease(
        self, namespace: str, keys: Sequence[bytes], *, lease: float, wait: float, timeout: float
    ) -> Sequence[Looked]: ...

    async def clear(self, namespace: str) -> object: ...


class SharedAnswers:
    """The cache service as other replicas see it too.

    Lookups that come while one is under way share the next call, and so do stores: one call in flight for each, so the
    cost per row falls as the load grows. A cache that fails or is slow is left alone for a while, longer each time.

    Of several replicas that miss a key at once, one computes it: a miss brings the right to compute (a lease), and whoever is
    told that another has it waits for the answer until its time-out is over, then computes for itself. Those waits are calls of
    their own: a lookup of what is known never stands behind one. A service without leases gives none, and nobody waits.
    """

    def __init__(
        self,
        cache: SharedCache,
        *,
        timeout_s: float,
        ttl_s: float,
        lease_s: float = 10.0,
        max_pending: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lease_s` is to cover queueing and computing: what is stored after its lease has ended is refused."""
        self._cache = cache
        self._timeout_s = timeout_s
        self._lease_s = lease_s
        self._patience = Patience(clock)
        self._stores = SharedStores(cache, self._patience, timeout_s=timeout_s, ttl_s=ttl_s, max_pending=max_pending)
        self._asked: dict[str, _Lot] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._waits: dict[tuple[str, bytes], asyncio.Task[Mapping[bytes, Values]]] = {}  # for what other replicas compute
        self._wanted: Counter[tuple[str, bytes]] = Counter()  # by callers that are inside of `get`

    async def get(self, namespace: str, keys: Sequence[bytes]) -> Mapping[bytes, Values]:
        """What is known of `keys`, within the time-out; a failing cache knows nothing.

        The caller computes the rest, and is to `put` or `release` it.
        """
        if self.paused:
            return {}
        names = [(namespace, key) for key in keys]
        self._wanted.update(names)
        try:
            return await self._get(namespace, keys)
        finally:
            self._wanted.subtract(names)
            for name in names:
                if not self._wanted[name]:
                    del self._wanted[name]

    async def _get(self, namespace: str, keys: Sequence[bytes]) -> Mapping[bytes, Values]:
        lot = self._asked.setdefault(namespace, _Lot())
        lot.keys.update(dict.fromkeys(keys))
        if namespace not in self._asking:
            self._asking[namespace] = asyncio.get_running_loop().create_task(self._ask(namespace))
        known: dict[bytes, Values] = {}
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await asyncio.shield(lot.reply)
                known = {key: reply.known[key] for key in keys if key in reply.known}
                if reply.leased and (others := [key for key in keys if key in reply.leased]):
                    known |= await self._wait(namespace, others)
        except TimeoutError:
            if not lot.reply.done():  # else another replica takes its time, which is no fault of the cache
                self._patience.failed("time-out")
        return known

    def put(self, namespace: str, outputs: Mapping[bytes, Values]) -> None:
        """Stores later, off the caller's path; dropped where too much waits already or the cache fails."""
        self._stores.put(namespace, outputs)

    def release(self, namespace: str, keys: Iterable[bytes]) -> None:
        """Gives up the right to compute `keys`, where this replica has it: other replicas need not wait for what will not come."""
        self._stores.release(namespace, keys)

    async def clear(self, namespace: str) -> bool:
        """Forgets the answers of a version for all replicas. False where the cache failed, which may be tried again."""
        if self.paused:
            return False
        try:
            async with asyncio.timeout(max(1.0, self._timeout_s)):
                await self._cache.clear(namespace)
        except Exception as error:  # as with lookups
            self._patience.failed(repr(error))
            return False
        return True

    @property
    def paused(self) -> bool:
        """Whether the cache is left alone for the moment."""
        return self._patience.paused

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = {*self._asking.values(), *self._waits.values()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stores.close()

    async def _ask(self, namespace: str) -> None:
        try:
            while (lot := self._asked.pop(namespace, None)) is not None:
                reply = _Reply()
                with tracing.within(lot.trace):
                    for keys in slices(list(lot.keys)):
                        await self._lookup(namespace, keys, reply)
                lot.answer(reply)
        finally:
            del self._asking[namespace]  # here, not in a callback: nobody may add a lot in between

    async def _wait(self, namespace: str, keys: Sequence[bytes]) -> Mapping[bytes, Values]:
        """What other replicas store of `keys`. However many callers wait for a key, one call does."""
        if fresh := [key for key in keys if (namespace, key) not in self._waits]:
            task = asyncio.get_running_loop().create_task(self._await_others(namespace, fresh))
            self._waits.update(dict.fromkeys([(namespace, key) for key in fresh], task))
        known: dict[bytes, Values] = {}
        for task in {self._waits[namespace, key] for key in keys}:
            known |= await asyncio.shield(task)
        return {key: known[key] for key in keys if key in known}

    async def _await_others(self, namespace: str, keys: Sequence[bytes]) -> Mapping[bytes, Values]:
        reply = _Reply()
        try:
            for some in slices(keys):
                await self._lookup(namespace, some, reply, wait_s=self._timeout_s)
        finally:
            for key in keys:
                del self._waits[namespace, key]
        return reply.known

    async def _lookup(self, namespace: str, keys: Sequence[bytes], reply: "_Reply", wait_s: float = 0.0) -> None:
        """Adds to `reply` what the cache tells of `keys`; a cache outage adds nothing, whatever it looks like."""
        try:
            looked = await self._cache.get_or_lease(namespace, keys, lease=self._lease_s, wait=wait_s, timeout=wait_s + self._timeout_s)
            known = {key: decode(each.value) for key, each in zip(keys, looked, strict=True) if each.value is not None}
        except Exception as error:
            self._patience.failed(repr(error))
            return
        self._patience.succeeded()
        reply.known.update({key: outputs for key, outputs in known.items() if outputs is not None})
        self._hold(namespace, {key: each.lease for key, each in zip(keys, looked, strict=True) if each.lease})
        # What this replica computes itself is not waited for: the engine lets every caller share it, and its store may be long.
        reply.leased.update(key for key, each in zip(keys, looked, strict=True) if each.leased and not self._stores.holds(namespace, key))

    def _hold(self, namespace: str, leases: Mapping[bytes, int]) -> None:
        """Those that came after their callers had gone go back at once: nobody computes under them."""
        self._stores.hold(namespace, leases)
        self._stores.release(namespace, [key for key in leases if not self._wanted.get((namespace, key))])


@dataclass(frozen=True, slots=True)
class _Reply:
    """What the cache told: answers, and keys that other replicas compute."""

    known: dict[bytes, Values] = field(default_factory=dict)
    leased: set[bytes] = field(default_factory=set)


class _Lot:
    """Keys of several callers that one call will ask for."""

    def __init__(self) -> None:
        self.keys: dict[bytes, None] = {}
        self.trace = tracing.current()  # of the first who asks: the task serves many calls in turn, and a call has one parent
        self.reply: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()

    def answer(self, reply: _Reply) -> None:
        if not self.reply.done():
            self.reply.set_result(reply)
