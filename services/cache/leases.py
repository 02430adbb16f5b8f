"""Leases: of the callers that miss a key, one at a time has the right to compute it."""

import asyncio
import heapq
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

HELD = 0  # another caller has the lease
NONE_LEFT = -1  # no more are given: compute without

_SPARE = 64  # ends noted beyond twice the leases there are, before those of leases given back are forgotten


class Leases(Protocol):
    """Rights to compute, each for one key and a time. Whoever holds one and goes away blocks nobody past its end."""

    async def take(self, namespace: str, keys: Sequence[bytes], seconds: float) -> list[int]:
        """For each key a token, random and above 0, or `HELD` or `NONE_LEFT`. Keys are taken in one step, each given once."""
        ...

    async def keep(self, namespace: str, held: Mapping[bytes, int]) -> list[bool]:
        """Whether each token is its key's lease still, and in no other's use. The caller stores under those that are, then ends them."""
        ...

    async def end(self, namespace: str, held: Mapping[bytes, int]) -> list[bool]:
        """Gives back those that are held still, which it tells, and wakes who waits for them."""
        ...

    async def revoke(self, namespace: str, keys: Sequence[bytes]) -> None:
        """Ends the keys' leases, whoever has them. One that is kept ends before this returns, or its `end` tells that it was none."""
        ...

    async def wait(self, namespace: str, keys: Sequence[bytes], seconds: float) -> None:
        """Returns when each of the keys has been without a lease, or after `seconds`."""
        ...


@dataclass(slots=True)
class _Lease:
    token: int
    ends_s: float
    kept: bool = False  # its holder is storing: it ends with that, and not by its time
    over: asyncio.Event = field(default_factory=asyncio.Event)


class LocalLeases:
    """Leases in this process's memory. A restart ends them all, which is safe: a token that nobody knows is one that was lost."""

    def __init__(self, clock: Callable[[], float], most: int) -> None:
        """`clock` tells seconds; at most `most` are held at a time."""
        self._clock = clock
        self._most = most
        self._leases: dict[tuple[str, bytes], _Lease] = {}
        self._ends: list[tuple[float, str, bytes]] = []  # a heap, with the ends of leases that were given back among them

    async def take(self, namespace: str, keys: Sequence[bytes], seconds: float) -> list[int]:
        now = self._clock()
        self._expire(now)
        return [self._take(namespace, key, now + seconds) for key in keys]

    async def keep(self, namespace: str, held: Mapping[bytes, int]) -> list[bool]:
        self._expire(self._clock())
        return [self._keep(namespace, key, token) for key, token in held.items()]

    async def end(self, namespace: str, held: Mapping[bytes, int]) -> list[bool]:
        return [self._end(namespace, key, token) for key, token in held.items()]

    async def revoke(self, namespace: str, keys: Sequence[bytes]) -> None:
        for key in keys:
            lease = self._leases.get((namespace, key))
            if lease is not None and lease.kept:
                await lease.over.wait()
            elif lease is not None:
                self._end(namespace, key, lease.token)

    async def wait(self, namespace: str, keys: Sequence[bytes], seconds: float) -> None:
        end_s = self._clock() + seconds
        for key in keys:
            while (lease := self._leases.get((namespace, key))) is not None:
                left_s = min(end_s, lease.ends_s) - self._clock()
                if left_s <= 0:
                    break
                await _happened(lease.over, left_s)

    def _take(self, namespace: str, key: bytes, ends_s: float) -> int:
        if (namespace, key) in self._leases:
            return HELD
        if len(self._leases) >= self._most:
            return NONE_LEFT
        lease = self._leases[namespace, key] = _Lease(1 + secrets.randbelow((1 << 63) - 1), ends_s)
        heapq.heappush(self._ends, (ends_s, namespace, key))
        return lease.token

    def _keep(self, namespace: str, key: bytes, token: int) -> bool:
        lease = self._leases.get((namespace, key))
        if lease is None or lease.token != token or lease.kept:
            return False
        lease.kept = True
        return True

    def _end(self, namespace: str, key: bytes, token: int) -> bool:
        lease = self._leases.get((namespace, key))
        if lease is None or lease.token != token:
            return False
        self._leases.pop((namespace, key)).over.set()
        return True

    def _expire(self, now: float) -> None:
        if len(self._ends) > 2 * len(self._leases) + _SPARE:
            self._ends = [(lease.ends_s, *name) for name, lease in self._leases.items()]
            heapq.heapify(self._ends)
        while self._ends and self._ends[0][0] <= now:
            _, namespace, key = heapq.heappop(self._ends)
            lease = self._leases.get((namespace, key))
            if lease is not None and lease.ends_s <= now and not lease.kept:
                self._leases.pop((namespace, key)).over.set()


async def _happened(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
