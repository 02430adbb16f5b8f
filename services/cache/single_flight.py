"""Look-ups and stores with leases: of many callers that miss a key one computes it, and what is out of date is not stored."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto

from services.cache.leases import HELD, NONE_LEFT, Leases
from services.cache.settings import ENTRY_OVERHEAD_BYTES
from services.cache.store import Entry, Stats, Store
from services.chassis import faults


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a batch of keys: each one's value in the order asked, and who computes those that have none.

    `leases` has the caller's lease of a key, or `HELD` where another caller has it; a key that is not there is for anyone to compute.
    """

    values: list[bytes | None]
    leases: Mapping[bytes, int]


class Outcome(Enum):
    """What became of an entry that was to be stored."""

    STORED = auto()
    NOT_STORED = auto()
    LEASE_LOST = auto()


@dataclass(frozen=True, slots=True)
class Limits:
    """Room of one answer, how many values are looked up at a time at most, and the longest key."""

    answer_bytes: int
    slice: int
    max_key_bytes: int


class SingleFlight:
    """A store with leases.

    A lease belongs to a key and to the epoch in which it was taken: it is held under the name of both. So a clear ends all of a
    namespace's leases at once, whoever keeps them, and a value computed before it never comes after it.
    """

    def __init__(self, store: Store, unmetered: Store, leases: Leases, limits: Limits) -> None:
        """`unmetered` is `store` without its meter, for what was counted as a miss already."""
        self._store = store
        self._unmetered = unmetered
        self._leases = leases
        self._limits = limits
        self._given = self._shared = self._lost = 0

    def stats(self) -> Stats:
        return replace(self._store.stats(), leases=self._given, shared=self._shared, leases_lost=self._lost)

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """In the order asked. A value that no longer fits in the answer is a miss: failing the call would fail its neighbours."""
        answer = _Answer(keys, self._limits)
        await answer.look_up(self._store, namespace)
        return answer.values

    async def get_or_lease(self, namespace: str, keys: Sequence[bytes], lease_s: float, wait_s: float) -> Found:
        """As `get`; a miss gets a lease of `lease_s`, or waits for at most `wait_s` for what the lease's holder stores."""
        answer = _Answer(keys, self._limits)
        await answer.look_up(self._store, namespace)
        refused = await self._lease_missing(namespace, answer, lease_s)
        if refused and wait_s > 0:
            try:
                await self._share(namespace, answer, refused, wait_s)
                await self._lease_missing(namespace, answer, lease_s)
            except BaseException:  # the caller has gone, or the store has failed: nobody may wait for a lease that nobody knows
                await self.release(namespace, {key: token for key, token in answer.leases.items() if token != HELD})
                raise
        return Found(answer.values, answer.leases)

    async def put(self, namespace: str, entries: Sequence[Entry], leases: Mapping[bytes, int]) -> list[Outcome]:
        """Stores entries, those whose key is in `leases` only while that one is held. All of `leases` end, whatever comes of it."""
        leased = [entry for entry in entries if entry.key in leases]
        free = [entry for entry in entries if entry.key not in leases]
        # A caller may go away; what is stored for it may not outlive its lease unseen.
        outcomes = iter(await asyncio.shield(self._put_leased(namespace, leased, leases)) if leases else ())
        taken = iter(await self._store.put(namespace, free) if free else ())
        return [next(outcomes) if entry.key in leases else _outcome(next(taken)) for entry in entries]

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        """Forgets keys and ends their leases, so that what was computed before is not stored after.

        Raises `faults.Unavailable` when that cannot be made sure of.
        """
        done = None
        # Again where a clear came between: leases taken after it have another name.
        while done != (epoch := (await self._unmetered.describe(namespace)).epoch):
            await self._leases.revoke(_name(namespace, epoch), keys)
            await self._store.delete(namespace, keys)
            done = epoch

    async def release(self, namespace: str, leases: Mapping[bytes, int]) -> None:
        """Gives leases back; who waits for them goes on."""
        if leases:
            await self._end((await self._unmetered.describe(namespace)).epoch, namespace, leases, leases)

    async def _share(self, namespace: str, answer: "_Answer", keys: Sequence[bytes], wait_s: float) -> None:
        await self._leases.wait(await self._lease_name(namespace), keys, wait_s)
        self._shared += await answer.look_up_again(self._unmetered, namespace, keys)

    async def _put_leased(self, namespace: str, entries: Sequence[Entry], leases: Mapping[bytes, int]) -> list[Outcome]:
        epoch = (await self._unmetered.describe(namespace)).epoch
        kept = await self._leases.keep(_name(namespace, epoch), leases)
        held = {key: token for (key, token), is_kept in zip(leases.items(), kept, strict=True) if is_kept}
        lost = {key: token for key, token in leases.items() if key not in held}
        storing = [entry for entry in entries if entry.key in held]
        try:
            taken = iter(await self._store.put(namespace, storing, epoch=epoch) if storing else ())
        finally:
            ended = await self._end(epoch, namespace, held, lost)
        revoked = [key for key, was_held in zip(held, ended, strict=True) if not was_held]
        await self._take_back(namespace, revoked)
        cleared = (await self._unmetered.describe(namespace)).epoch != epoch
        refusal = Outcome.LEASE_LOST if cleared else Outcome.NOT_STORED
        stored = {entry.key: _outcome(next(taken), refusal) for entry in storing} | dict.fromkeys(revoked, Outcome.LEASE_LOST)
        outcomes = [stored.get(entry.key, Outcome.LEASE_LOST) for entry in entries]
        self._lost += outcomes.count(Outcome.LEASE_LOST)
        return outcomes

    async def _take_back(self, namespace: str, keys: Sequence[bytes]) -> None:
        """What another replica deleted while it was stored here."""
        if keys:
            with suppress(faults.Unavailable):  # an outage, which most likely had the put refused as well
                await self._store.delete(namespace, keys)

    async def _end(self, epoch: int, namespace: str, leases: Mapping[bytes, int], lost: Mapping[bytes, int]) -> list[bool]:
        ended = await self._leases.end(_name(namespace, epoch), leases)
        if lost and epoch:  # a clear may be why; who waits since before it learns so by this
            await self._leases.end(_name(namespace, epoch - 1), lost)
        return ended

    async def _lease_missing(self, namespace: str, answer: "_Answer", lease_s: float) -> list[bytes]:
        """Takes what can be had; the keys whose lease another caller has."""
        missing = answer.missing()
        if not missing:
            return []
        tokens = await self._leases.take(await self._lease_name(namespace), missing, lease_s)
        answer.leases.update({key: token for key, token in zip(missing, tokens, strict=True) if token != NONE_LEFT})
        self._given += sum(token not in (HELD, NONE_LEFT) for token in tokens)
        return [key for key, token in zip(missing, tokens, strict=True) if token == HELD]

    async def _lease_name(self, namespace: str) -> str:
        return _name(namespace, (await self._unmetered.describe(namespace)).epoch)


class _Answer:
    """What one call has found so far, within the room of its answer."""

    def __init__(self, keys: Sequence[bytes], limits: Limits) -> None:
        self._keys = keys
        self._limits = limits
        self._room_bytes = limits.answer_bytes
        self._unfit: set[bytes] = set()  # keys of values that the answer has no room for: none to compute again
        self.values: list[bytes | None] = []
        self.leases: dict[bytes, int] = {}

    async def look_up(self, store: Store, namespace: str) -> None:
        """Asks for all keys, as long as there is room."""
        self.values = await self._fitting(store, namespace, self._keys)

    async def look_up_again(self, store: Store, namespace: str, keys: Sequence[bytes]) -> int:
        """Asks for `keys`, for which others had leases; how many are there now. Those that are not are nobody's again."""
        wanted = set(keys)
        places = [place for place, key in enumerate(self._keys) if key in wanted]  # each of them: equal keys take room each
        values = await self._fitting(store, namespace, [self._keys[place] for place in places])
        for place, value in zip(places, values, strict=True):
            self.values[place] = value
        for key in keys:
            del self.leases[key]
        return len({self._keys[place] for place in places if self.values[place] is not None})

    def missing(self) -> list[bytes]:
        """The keys to lease, each once: without a value or a lease, and of a length that can be stored."""
        unknown = dict.fromkeys(key for key, value in zip(self._keys, self.values, strict=True) if value is None)
        longest = self._limits.max_key_bytes
        return [key for key in unknown if 0 < len(key) <= longest and key not in self.leases and key not in self._unfit]

    async def _fitting(self, store: Store, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        values: list[bytes | None] = []
        for begin in range(0, len(keys), self._limits.slice):
            asked = keys[begin : begin + self._limits.slice]
            if self._room_bytes > 0:
                values += self._fit(asked, await store.get(namespace, asked))
            else:
                self._unfit.update(asked)
                values += [None] * len(asked)
        return values

    def _fit(self, keys: Sequence[bytes], values: list[bytes | None]) -> list[bytes | None]:
        sizes_bytes = [ENTRY_OVERHEAD_BYTES + len(value or b"") for value in values]
        self._room_bytes -= sum(sizes_bytes)
        if self._room_bytes >= 0:
            return values
        # From the end on, until the rest fits.
        for place in reversed(range(len(values))):
            if self._room_bytes >= 0:
                break
            if values[place] is not None:
                self._unfit.add(keys[place])
                self._room_bytes += len(values[place] or b"")
                values[place] = None
        return values


def _name(namespace: str, epoch: int) -> str:
    """No namespace contains a `#`, so that no two pairs share one."""
    return f"{namespace}#{epoch}"


def _outcome(taken: bool, refusal: Outcome = Outcome.NOT_STORED) -> Outcome:
    return Outcome.STORED if taken else refusal
