"""A store behaves as a dict that may forget: it never makes up, mixes up or revives a value."""

import asyncio
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.cache.compressed import CompressedStore
from services.cache.disk import disk_store
from services.cache.memory import MemoryStore
from services.cache.sealed import Broken, seal, unseal
from services.cache.sharded import merge, split
from services.cache.store import Entry, Namespace, Store

NAMESPACES = st.sampled_from(["a", "ab", "b"])
KEYS = st.sampled_from([b"", b"b", b"\0", b"b\0", b"x" * 40])
VALUES = st.binary(max_size=40_000) | st.integers(0, 40_000).map(bytes)  # the second kind is easily compressed
TTLS_S = st.sampled_from([100.25, 5_000.25, 1e6])  # no sum of waits, so that no entry ends at the very moment of a look


class StoreMachine(RuleBasedStateMachine):
    """Drives a store beside a dict; `forgets` says whether its room is small enough for it to forget."""

    forgets = False
    slack_s = 1e-3  # of the lives that are told

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 4e9
        self.model: dict[tuple[str, bytes], tuple[bytes, float]] = {}
        self.epochs: Counter[str] = Counter()
        self.ttls_s: dict[str, float | None] = {}
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.stack = AsyncExitStack()
        self.store: Store = self.runner.run(self.open())

    async def open(self) -> Store:
        raise NotImplementedError

    def live(self, namespace: str) -> dict[bytes, bytes]:
        return {key: value for (owner, key), (value, end_s) in self.model.items() if owner == namespace and end_s > self.now_s}

    @rule(namespace=NAMESPACES, items=st.lists(st.tuples(KEYS, VALUES, TTLS_S), max_size=4), epochs_ago=st.sampled_from([None, 0, 1]))
    def put(self, namespace: str, items: list[tuple[bytes, bytes, float]], epochs_ago: int | None) -> None:
        epoch = None if epochs_ago is None else self.epochs[namespace] - epochs_ago
        taken = self.runner.run(self.store.put(namespace, [Entry(*item) for item in items], epoch=epoch))
        assert len(taken) == len(items)
        for (key, value, ttl_s), kept in zip(items, taken, strict=True):
            assert not (kept and epochs_ago)
            assert kept or epochs_ago or self.forgets
            if kept:
                self.model[namespace, key] = (value, self.now_s + ttl_s)

    @rule(namespace=NAMESPACES, keys=st.lists(KEYS, max_size=6))
    def get(self, namespace: str, keys: list[bytes]) -> None:
        expected = [self.live(namespace).get(key) for key in keys]
        for found, right in zip(self.runner.run(self.store.get(namespace, keys)), expected, strict=True):
            assert found == right or (found is None and self.forgets)

    @rule(namespace=NAMESPACES, keys=st.lists(KEYS, max_size=6))
    def lives(self, namespace: str, keys: list[bytes]) -> None:
        live = self.live(namespace)
        expected = [self.model[namespace, key][1] - self.now_s if key in live else 0.0 for key in keys]
        for found, right in zip(self.runner.run(self.store.lives(namespace, keys)), expected, strict=True):
            assert found == pytest.approx(right, abs=self.slack_s) or (found == 0 and self.forgets)

    @rule(namespace=NAMESPACES, keys=st.lists(KEYS, max_size=3))
    def delete(self, namespace: str, keys: list[bytes]) -> None:
        self.runner.run(self.store.delete(namespace, keys))
        for key in keys:
            self.model.pop((namespace, key), None)

    @rule(namespace=NAMESPACES)
    def clear(self, namespace: str) -> None:
        self.epochs[namespace] += 1
        assert self.runner.run(self.store.clear(namespace)) == self.epochs[namespace]
        self.model = {name: kept for name, kept in self.model.items() if name[0] != namespace}

    @rule(namespace=NAMESPACES, ttl_s=st.sampled_from([None, 0.5, 60.0]))
    def configure(self, namespace: str, ttl_s: float | None) -> None:
        self.runner.run(self.store.configure(namespace, ttl_s))
        self.ttls_s[namespace] = ttl_s

    @rule(namespace=NAMESPACES)
    def describe(self, namespace: str) -> None:
        expected = Namespace(self.epochs[namespace], self.ttls_s.get(namespace))
        assert self.runner.run(self.store.describe(namespace)) == expected

    @rule(seconds=st.sampled_from([30.0, 70.5, 4_900.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def counts_are_sane(self) -> None:
        stats = self.store.stats()
        assert stats.corrupt == 0
        assert stats.entries >= 0
        assert stats.bytes >= 0

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()
        self.folder.cleanup()


class RoomyMemory(StoreMachine):
    async def open(self) -> Store:
        return MemoryStore(1 << 30, lambda: self.now_s)


class TightMemory(StoreMachine):
    forgets = True

    async def open(self) -> Store:
        return MemoryStore(60_000, lambda: self.now_s)

    @invariant()
    def stays_under_its_limit(self) -> None:
        assert self.store.stats().bytes <= 60_000


class RoomyDisk(StoreMachine):
    max_bytes = 1 << 30
    shards = 1

    async def open(self) -> Store:
        store = disk_store(Path(self.folder.name), "least-recently-used", self.max_bytes, lambda: self.now_s, shards=self.shards)
        return await self.stack.enter_async_context(store)

    @rule()
    def restart(self) -> None:
        self.runner.run(self.stack.aclose())
        self.store = self.runner.run(self.open())


class TightDisk(RoomyDisk):
    forgets = True
    max_bytes = 200_000

    @invariant()
    def stays_under_its_limit(self) -> None:
        assert self.store.stats().bytes <= self.max_bytes


class ShardedDisk(RoomyDisk):
    shards = 3


class CompressedMemory(StoreMachine):
    """Large values are compressed, small ones and those that would grow are not; which ones changes on the way."""

    async def open(self) -> Store:
        self.kept = MemoryStore(1 << 30, lambda: self.now_s)
        return CompressedStore(self.kept, 1_000, 40_000)

    @rule(compress_bytes=st.sampled_from([0, 1, 1_000, 40_000]))
    def set(self, compress_bytes: int) -> None:
        self.store = CompressedStore(self.kept, compress_bytes, 40_000)


BRIEF = settings(max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])

TestRoomyMemory = RoomyMemory.TestCase
TestTightMemory = TightMemory.TestCase
TestRoomyDisk = RoomyDisk.TestCase
TestTightDisk = TightDisk.TestCase
TestShardedDisk = ShardedDisk.TestCase
TestCompressedMemory = CompressedMemory.TestCase
TestRoomyMemory.settings = TestTightMemory.settings = TestCompressedMemory.settings = BRIEF
TestRoomyDisk.settings = TestTightDisk.settings = settings(BRIEF, max_examples=8)  # what is durable takes its time
TestShardedDisk.settings = settings(BRIEF, max_examples=4)  # and each restart opens all the databases


@given(keys=st.lists(st.binary(max_size=4)), shards=st.integers(1, 5))
def test_merge_undoes_split_and_equal_keys_share_a_shard(keys: list[bytes], shards: int) -> None:
    parts = split(keys, shards)
    assert merge(list(parts.values()), [[keys[place] for place in places] for places in parts.values()]) == keys
    homes = {(keys[place], shard) for shard, places in parts.items() for place in places}
    assert len(homes) == len(set(keys))


@given(key=st.binary(max_size=50), value=st.binary(max_size=200), expires_s=st.floats(0, 1e12))
def test_unseal_undoes_seal(key: bytes, value: bytes, expires_s: float) -> None:
    assert unseal(key, seal(key, value, expires_s)) == (value, expires_s)


@given(key=st.binary(max_size=8), value=st.binary(max_size=50), data=st.data())
def test_a_changed_bit_or_length_or_key_breaks_the_seal(key: bytes, value: bytes, data: st.DataObject) -> None:
    sealed = seal(key, value, 5.0)
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    flipped = bytearray(sealed)
    flipped[bit // 8] ^= 1 << bit % 8
    cut = data.draw(st.integers(0, len(sealed) - 1))
    for wrong_key, wrong in ((key, bytes(flipped)), (key, sealed[:cut]), (key, sealed + b"\0"), (key + b"\0", sealed)):
        with pytest.raises(Broken):
            unseal(wrong_key, wrong)
