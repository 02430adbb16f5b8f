"""What this replica gives to the cache service: answers, and the right to compute them, back unused."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.inference.answer_key import encode
from services.inference.layout import Values
from services.inference.patience import Patience

_CALL_KEYS = 1024  # the cache service's own limit for a call, unless it is set lower; a larger call would be refused whole


class StoringCache(Protocol):
    """The part of the cache client that is used here."""

    async def put(
        self, namespace: str, entries: Mapping[bytes, bytes], *, ttl: float, leases: Mapping[bytes, int], timeout: float
    ) -> object: ...

    async def release(self, namespace: str, leases: Mapping[bytes, int], *, timeout: float) -> object: ...


class SharedStores:
    """Keeps the leases of what this replica computes, and sends answers with them. Off the callers' path, one call in flight for each."""

    def __init__(self, cache: StoringCache, patience: Patience, *, timeout_s: float, ttl_s: float, max_pending: int) -> None:
        self._cache = cache
        self._patience = patience
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._max_pending = max_pending
        self._held: dict[tuple[str, bytes], int] = {}
        self._stores: dict[str, dict[bytes, _Store]] = {}
        self._returns: dict[str, dict[bytes, int]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def hold(self, namespace: str, leases: Mapping[bytes, int]) -> None:
        """From now on this replica computes these keys, and is to `put` or `release` each."""
        self._held.update({(namespace, key): lease for key, lease in leases.items()})

    def holds(self, namespace: str, key: bytes) -> bool:
        return (namespace, key) in self._held

    def put(self, namespace: str, outputs: Mapping[bytes, Values]) -> None:
        """Stores later; dropped where too much waits already or the cache fails."""
        if self._patience.paused or sum(map(len, self._stores.values())) + len(outputs) > self._max_pending:
            self.release(namespace, outputs)
            return
        stores = self._stores.setdefault(namespace, {})
        for key, values in outputs.items():
            if key not in stores:
                stores[key] = _Store(encode(values), self._held.pop((namespace, key), 0))
        self._start(f"put {namespace}", self._send_stores, namespace)

    def release(self, namespace: str, keys: Iterable[bytes]) -> None:
        """Gives the leases of `keys` back later, those that are held."""
        if not self._held:
            return
        given_up = {key: lease for key in keys if (lease := self._held.pop((namespace, key), 0))}
        if given_up and not self._patience.paused:
            self._returns.setdefault(namespace, {}).update(given_up)
            self._start(f"release {namespace}", self._send_returns, namespace)

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _start(self, name: str, work: Callable[[str, str], Coroutine[None, None, None]], namespace: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = asyncio.get_running_loop().create_task(work(name, namespace))

    async def _send_stores(self, name: str, namespace: str) -> None:
        try:
            while entries := self._stores.pop(namespace, None):
                for keys in slices(list(entries)):
                    await self._put(namespace, {key: entries[key] for key in keys})
        finally:
            del self._tasks[name]  # here, not in a callback: nobody may add an entry in between

    async def _send_returns(self, name: str, namespace: str) -> None:
        try:
            while leases := self._returns.pop(namespace, None):
                for keys in slices(list(leases)):
                    await self._give_back(namespace, {key: leases[key] for key in keys})
        finally:
            del self._tasks[name]

    async def _put(self, namespace: str, entries: Mapping[bytes, "_Store"]) -> None:
        values = {key: entry.value for key, entry in entries.items()}
        leases = {key: entry.lease for key, entry in entries.items() if entry.lease}
        try:
            await self._cache.put(namespace, values, ttl=self._ttl_s, leases=leases, timeout=max(1.0, self._timeout_s))
        except Exception as error:  # a cache outage is a miss, whatever it looks like; the entries are lost, which a cache may
            self._patience.failed(repr(error))

    async def _give_back(self, namespace: str, leases: Mapping[bytes, int]) -> None:
        try:
            await self._cache.release(namespace, leases, timeout=max(1.0, self._timeout_s))
        except Exception as error:  # as above; leases end by themselves
            self._patience.failed(repr(error))


def slices(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """As many keys as a call takes, and the next."""
    return (keys[start : start + _CALL_KEYS] for start in range(0, len(keys), _CALL_KEYS))


@dataclass(frozen=True, slots=True)
class _Store:
    """An encoded answer, and the lease that it goes with (0: none)."""

    value: bytes
    lease: int
