"""The optimum that eviction is measured against, held against every choice that there is; and the stores against the optimum."""

import random
import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.belady import most_hits
from benchmarks.eviction import POLICIES, Shape, replay, trace
from services.cache.disk import disk_store
from services.cache.memory import MemoryStore

ROOM_BYTES = 400_000
SHAPE = Shape(accesses=1_500, keys=300, exponent=0.9, scanned=0.2, scan_length=50)


def tried_out(keys: tuple[int, ...], capacity: int) -> int:
    """The most hits over every choice of what to keep after every access."""

    @cache
    def best(place: int, kept: frozenset[int]) -> int:
        if place == len(keys):
            return 0
        here = kept | {keys[place]}
        choices = [kept, here] if len(here) <= capacity else [kept, *(here - {dropped} for dropped in here)]
        fitting = {choice for choice in choices if len(choice) <= capacity}
        return (keys[place] in kept) + max(best(place + 1, choice) for choice in fitting)

    return best(0, frozenset())


@given(keys=st.lists(st.integers(0, 4), max_size=9), capacity=st.integers(0, 4))
def test_no_choice_does_better_and_one_does_as_well(keys: list[int], capacity: int) -> None:
    assert most_hits(keys, capacity) == tried_out(tuple(keys), capacity)


@given(keys=st.lists(st.integers(0, 50), max_size=200), capacity=st.integers(0, 60))
def test_more_room_never_does_worse_and_room_for_all_misses_each_once(keys: list[int], capacity: int) -> None:
    assert most_hits(keys, capacity) <= most_hits(keys, capacity + 1)
    assert most_hits(keys, 51) == len(keys) - len(set(keys))


def test_a_trace_is_as_asked_for() -> None:
    keys = trace(SHAPE, random.Random(3))
    scanned = [key for key in keys if key < 0]
    assert len(keys) == 1_500
    assert len(scanned) == len(set(scanned)) == 300
    begun = keys.index(scanned[0])
    assert keys[begun : begun + 50] == scanned[:50]
    drawn = [key for key in keys if key >= 0]
    assert set(drawn) <= set(range(300))
    assert drawn.count(0) > drawn.count(20) > 0
    assert keys == trace(SHAPE, random.Random(3))


@pytest.mark.parametrize("policy", POLICIES.values())
async def test_no_policy_of_the_disk_store_beats_the_optimum(tmp_path: Path, policy: str) -> None:
    keys = trace(SHAPE, random.Random(1))
    async with disk_store(tmp_path, policy, ROOM_BYTES) as store:
        done = await replay(store, keys)
        assert store.stats().evictions > 0
    assert len(keys) / 10 < done.hits <= most_hits(keys, done.most_entries)


async def test_what_is_used_least_recently_goes_first_exactly_in_memory() -> None:
    keys = trace(SHAPE, random.Random(2))
    done = await replay(MemoryStore(ROOM_BYTES, time.monotonic), keys)
    recent: dict[int, None] = {}
    hits = 0
    for key in keys:
        hits += key in recent
        recent.pop(key, None)
        recent[key] = None
        if len(recent) > done.most_entries:
            del recent[next(iter(recent))]
    assert done.hits == hits <= most_hits(keys, done.most_entries)
