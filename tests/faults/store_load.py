"""A load on a store: workers that put, get, delete and clear at random, and tell each step before and after."""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from services.cache.store import Entry, Namespace
from tests.faults.kept_values import LARGEST_BYTES, number_of, value_of

NAMESPACES = ("a", "b", "c")
WORKERS = 4
KEYS_EACH = 6  # of a worker in each namespace; no two workers share one
ALL_VALUES_BYTES = len(NAMESPACES) * WORKERS * KEYS_EACH * LARGEST_BYTES
LIFE_S = 3600.0
NUMBERS_OF_A_LIFE = 1_000_000  # so that no two values ever have the same

Tell = Callable[..., None]


class Kept(Protocol):
    """The part of a store that is put under load."""

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]: ...

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]: ...

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None: ...

    async def clear(self, namespace: str) -> int: ...


@runtime_checkable
class Described(Protocol):
    """A store that tells its epochs."""

    async def describe(self, namespace: str) -> Namespace: ...


async def look_all_up(store: Kept, tell: Tell) -> None:
    """Tells what is there under every key."""
    for namespace in NAMESPACES:
        keys = [key_of(who, number) for who in range(WORKERS) for number in range(KEYS_EACH)]
        values = await store.get(namespace, [key.encode() for key in keys])
        for key, value in zip(keys, values, strict=True):
            tell("find", namespace, key)
            tell("find done", namespace, key, None if value is None else number_of((namespace, key), value))


async def load(store: Kept, tell: Tell, life: int, seed: int) -> None:
    """Until it is cancelled, or the store fails."""
    numbers = iter(range(life * NUMBERS_OF_A_LIFE, (life + 1) * NUMBERS_OF_A_LIFE))
    workers = (Worker(store, tell, who, random.Random(f"{seed} {life} {who}"), numbers) for who in range(WORKERS))
    await asyncio.gather(*(worker.work() for worker in workers))


def key_of(who: int, number: int) -> str:
    return f"{who}.{number}"


class Worker:
    """Does one random thing after another with keys of its own, and clears namespaces that it shares with the others."""

    def __init__(self, store: Kept, tell: Tell, who: int, chance: random.Random, numbers: Iterator[int]) -> None:
        self._store = store
        self._tell = tell
        self._who = who
        self._chance = chance
        self._numbers = numbers

    async def work(self) -> None:
        steps = (self._put, self._get, self._delete, self._clear)
        while True:
            (step,) = self._chance.choices(steps, (55, 25, 10, 10))
            await step(self._chance.choice(NAMESPACES))

    async def _put(self, namespace: str) -> None:
        keys = self._keys()
        numbers = [next(self._numbers) for _ in keys]
        entries = [Entry(key.encode(), value_of((namespace, key), number), LIFE_S) for key, number in zip(keys, numbers, strict=True)]
        epoch = await self._epoch(namespace)
        for key, number in zip(keys, numbers, strict=True):
            self._tell("put", namespace, key, number)
        for key, taken in zip(keys, await self._store.put(namespace, entries, epoch=epoch), strict=True):
            self._tell("put done", namespace, key, taken, epoch is not None)

    async def _get(self, namespace: str) -> None:
        keys = self._keys()
        for key in keys:
            self._tell("find", namespace, key)
        for key, value in zip(keys, await self._store.get(namespace, [key.encode() for key in keys]), strict=True):
            self._tell("find done", namespace, key, None if value is None else number_of((namespace, key), value))

    async def _delete(self, namespace: str) -> None:
        keys = self._keys()
        for key in keys:
            self._tell("delete", namespace, key)
        await self._store.delete(namespace, [key.encode() for key in keys])
        for key in keys:
            self._tell("delete done", namespace, key)

    async def _clear(self, namespace: str) -> None:
        self._tell("clear", namespace, self._who)
        await self._store.clear(namespace)
        self._tell("clear done", namespace, self._who)

    async def _epoch(self, namespace: str) -> int | None:
        """For a put that a clear may have refused; None, and the other half of the time, where epochs are not told."""
        if not isinstance(self._store, Described) or self._chance.random() < 0.5:
            return None
        return (await self._store.describe(namespace)).epoch

    def _keys(self) -> list[str]:
        return [key_of(self._who, number) for number in self._chance.sample(range(KEYS_EACH), self._chance.randint(1, 4))]
