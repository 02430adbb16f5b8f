"""Hit rates of the real stores' eviction policies on a Zipf trace with scans in it, beside the best that any policy could do."""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from hone.cli.show import console, table

from benchmarks.belady import most_hits
from services.cache.disk import disk_store
from services.cache.memory import MemoryStore
from services.cache.store import Entry, Store

POLICIES = {"used": "least-recently-used", "frequently used": "least-frequently-used", "age": "least-recently-stored"}
VALUE = bytes(4096)  # beside which a store's own share of a row is small
SHARES = (0.05, 0.1, 0.2, 0.4)  # of the keys, that there is room for
TTL_S = 86_400.0
_ROW_BYTES = 5000  # about what a row of such a value takes of a store's limit; what it really held is told


@dataclass(frozen=True)
class Shape:
    """Of a trace: draws from `keys` with a Zipf distribution, and between them scans of `scan_length` keys, each read once.

    `scanned` is the share of all accesses that are of scans.
    """

    accesses: int
    keys: int
    exponent: float
    scanned: float
    scan_length: int


@dataclass(frozen=True)
class Replay:
    """What a store did on a trace, and the most entries that it held in between."""

    hits: int
    most_entries: int


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks eviction", description=__doc__)
    parser.add_argument("--accesses", type=int, default=8_000)
    parser.add_argument("--keys", type=int, default=1_500, help="that are asked for again and again")
    parser.add_argument("--exponent", type=float, default=0.9, help="of the Zipf distribution; higher has fewer favourites")
    parser.add_argument("--scanned", type=float, default=0.2, help="share of accesses that belong to scans")
    parser.add_argument("--scan-length", type=int, default=200, help="keys of one scan, which nobody asks for again")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args(arguments)
    shape = Shape(told.accesses, told.keys, told.exponent, told.scanned, told.scan_length)
    begun = time.monotonic()
    drawn = trace(shape, random.Random(told.seed))
    rows = [_row(drawn, shape, share) for share in SHARES]
    draws = f"Zipf {told.exponent:g} over {told.keys} keys, {told.scanned:.0%} in scans"
    title = f"Hits of {told.accesses} accesses, {draws}; in brackets of what the best policy would have had with as many entries"
    console.print(table(title, ("room, entries", *POLICIES, "memory store", "best possible"), rows))
    console.print(f"{time.monotonic() - begun:.0f} s in all", highlight=False)


def trace(shape: Shape, draw: random.Random) -> list[int]:
    """Keys in the order of their accesses; those of scans are negative, and no two alike. Scans come between draws, each in one piece."""
    weights = list(accumulate(1 / rank**shape.exponent for rank in range(1, shape.keys + 1)))
    scans = round(shape.accesses * shape.scanned / shape.scan_length)
    draws = draw.choices(range(shape.keys), cum_weights=weights, k=shape.accesses - scans * shape.scan_length)
    places = sorted(draw.choices(range(len(draws) + 1), k=scans))
    keys: list[int] = []
    for number, (begin, end) in enumerate(zip([0, *places], [*places, len(draws)], strict=True)):
        keys += draws[begin:end]
        if number < scans:
            keys += range(-1 - number * shape.scan_length, -1 - (number + 1) * shape.scan_length, -1)
    return keys


async def replay(store: Store, keys: Sequence[int]) -> Replay:
    """Asks for each key in turn and stores it where it is missing."""
    hits = most_entries = 0
    for key in keys:
        name = b"%d" % key
        (value,) = await store.get("trace", [name])
        if value is None:
            await store.put("trace", [Entry(name, VALUE, TTL_S)])
            most_entries = max(most_entries, store.stats().entries)
        hits += value is not None
    return Replay(hits, most_entries)


def _row(keys: Sequence[int], shape: Shape, share: float) -> tuple[str, ...]:
    room_bytes = int(share * shape.keys) * _ROW_BYTES
    done = [asyncio.run(_on_disk(keys, policy, room_bytes)) for policy in POLICIES.values()]
    done.append(asyncio.run(replay(MemoryStore(room_bytes, time.monotonic), keys)))
    held = sorted(each.most_entries for each in done)
    return (f"{held[0]} to {held[-1]}", *(_rate(each, keys) for each in done), f"{most_hits(keys, held[-1]) / len(keys):.1%}")


def _rate(done: Replay, keys: Sequence[int]) -> str:
    """Of all accesses, and of what the best policy would have had with as many entries."""
    return f"{done.hits / len(keys):.1%} ({done.hits / max(1, most_hits(keys, done.most_entries)):.0%})"


async def _on_disk(keys: Sequence[int], policy: str, room_bytes: int) -> Replay:
    async with _disk(policy, room_bytes) as store:
        return await replay(store, keys)


@asynccontextmanager
async def _disk(policy: str, room_bytes: int) -> AsyncIterator[Store]:
    with tempfile.TemporaryDirectory(prefix="hone-") as folder:
        async with disk_store(Path(folder), policy, room_bytes) as store:
            yield store
