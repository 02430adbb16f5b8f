"""The near cache: bounded in bytes, never staler than it says, and out of the way when the service is."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from hone.aio import CacheClient
from hone.cache.v1 import cache_pb2 as pb
from hone.cached import Living
from hone.near import OVERHEAD_BYTES, NearCache
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Suite

BOUND_S = 1.0
BEGAN, LOST = pb.WatchResponse(began=pb.Began()), pb.WatchResponse(lost=pb.Lost())


class AwayError(grpc.RpcError):
    """As a service that does not answer."""


class Service:
    """The cache service with a clock, answers and news that a test moves: news wait in `news` until `deliver`."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.kept: dict[tuple[str, bytes], bytes] = {}
        self.history: defaultdict[tuple[str, bytes], list[tuple[float, bytes | None]]] = defaultdict(lambda: [(0.0, None)])
        self.ttl_left: float | None = 1e6
        self.asked: list[list[bytes]] = []
        self.held: list[asyncio.Event] | None = None  # a gate for each answer, where a test holds them back
        self.news: list[pb.WatchResponse] = []
        self.cut = False
        self.refuses_watches = False
        self._line: asyncio.Queue[pb.WatchResponse | None] | None = None
        self.next_watch, self.next_proof = asyncio.Event(), asyncio.Event()

    async def pause(self, seconds: float) -> None:
        gate = self.next_proof if seconds == BOUND_S / 3 else self.next_watch
        await gate.wait()
        gate.clear()

    async def get_living(self, namespace: str, keys: Sequence[bytes], *, timeout: float | None = None) -> list[Living | None]:
        if self.cut:
            raise AwayError
        if not keys:  # the proof comes over the news' own connection, after them
            self._arrive(len(self.news))
            await turns(2)
            return []
        self.asked.append(list(keys))
        values = [self.kept.get((namespace, key)) for key in keys]
        if self.held is not None:
            self.held.append(gate := asyncio.Event())
            await gate.wait()
        return [None if value is None else Living(value, self.ttl_left) for value in values]

    async def put(
        self, namespace: str, entries: Mapping[bytes, bytes], *, ttl: float | None = None, timeout: float | None = None
    ) -> "list[pb.ItemStatus.ValueType]":
        for key, value in entries.items():
            self.write(key, value, namespace)
        return [pb.ITEM_STATUS_OK] * len(entries)

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        for key in keys:
            self.write(key, None, namespace)

    async def clear(self, namespace: str) -> int:
        self.empty(namespace)
        return 1

    async def watch(self, namespaces: Sequence[str] = ()) -> AsyncIterator[pb.WatchResponse]:
        if self.refuses_watches:
            raise AwayError
        line = self._line = asyncio.Queue[pb.WatchResponse | None]()
        self.news = [BEGAN]
        while (told := await line.get()) is not None:
            yield told
        raise AwayError

    # What a test does

    def write(self, key: bytes, value: bytes | None, namespace: str = "n") -> None:
        self._set((namespace, key), value)
        self.news.append(pb.WatchResponse(changed=pb.ChangedKeys(namespace=namespace, keys=[key])))

    def empty(self, namespace: str = "n") -> None:
        for name in [name for name in self.kept if name[0] == namespace]:
            self._set(name, None)
        self.news.append(pb.WatchResponse(cleared=namespace))

    def _set(self, name: tuple[str, bytes], value: bytes | None) -> None:
        self.history[name].append((self.now_s, value))
        if value is None:
            self.kept.pop(name, None)
        else:
            self.kept[name] = value

    async def deliver(self, most: int = 1000) -> None:
        self._arrive(most)
        await turns()

    def _arrive(self, most: int) -> None:
        arrived, self.news = self.news[:most], self.news[most:]
        if self._line is not None:
            for told in arrived:
                self._line.put_nowait(told)

    async def end_watch(self) -> None:
        if self._line is not None:
            self._line.put_nowait(None)
        self._line, self.news = None, []
        await turns()

    async def prove(self) -> None:
        self.next_proof.set()
        await turns()

    def current_since(self, name: tuple[str, bytes], since_s: float) -> set[bytes | None]:
        """The values that the key has had at or after a moment."""
        history = self.history[name]
        ends = [end_s for end_s, _ in history[1:]] + [float("inf")]
        return {value for (_, value), end_s in zip(history, ends, strict=True) if end_s >= since_s}


async def turns(count: int = 8) -> None:
    """Lets every task that can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


@asynccontextmanager
async def near_of(service: Service, **options: Any) -> AsyncIterator[NearCache]:
    async with NearCache(service, bound_s=BOUND_S, clock=lambda: service.now_s, pause=service.pause, **options) as near:
        await turns()
        await service.deliver()
        await service.prove()
        yield near


# What it answers


async def test_what_is_near_is_not_asked_for_again() -> None:
    service = Service()
    service.kept = {("n", b"a"): b"1", ("n", b"b"): b"2"}
    async with near_of(service) as near:
        assert await near.get("n", [b"a"]) == [b"1"]
        for _ in range(20):
            service.now_s += 0.4
            await service.prove()
            assert await near.get("n", [b"a", b"b", b"none", b"a"]) == [b"1", b"2", None, b"1"]
        assert (near.hits, near.misses) == (2 * 20 + 19, 1 + 1 + 20)
    assert service.asked == [[b"a"], [b"b", b"none"], *[[b"none"]] * 19]


async def test_a_hit_never_gives_up_the_loop() -> None:
    service = Service()
    service.kept = {("n", b"a"): b"1"}
    async with near_of(service) as near:
        await near.get("n", [b"a"])
        with pytest.raises(StopIteration) as answered:
            near.get("n", [b"a"]).send(None)
        assert answered.value.value == [b"1"]


async def test_the_same_key_of_two_namespaces_is_two() -> None:
    service = Service()
    service.kept = {("n", b"a"): b"1", ("m", b"a"): b"2"}
    async with near_of(service) as near:
        for _ in range(2):
            assert (await near.get("n", [b"a"]), await near.get("m", [b"a"])) == ([b"1"], [b"2"])
        await near.clear("m")
        assert (await near.get("n", [b"a"]), await near.get("m", [b"a"])) == ([b"1"], [None])
    assert service.asked == [[b"a"]] * 3


async def test_a_process_reads_its_own_writes_before_it_is_told_of_them() -> None:
    service = Service()
    service.kept = {("n", b"a"): b"1"}
    async with near_of(service) as near:
        await near.get("n", [b"a"])
        assert await near.put("n", {b"a": b"2"}) == [pb.ITEM_STATUS_OK]
        assert await near.get("n", [b"a"]) == [b"2"]
        await near.delete("n", [b"a"])
        assert await near.get("n", [b"a"]) == [None]


@pytest.mark.parametrize(
    "told", [pb.WatchResponse(changed=pb.ChangedKeys(namespace="n", keys=[b"a"])), pb.WatchResponse(cleared="n"), LOST]
)
async def test_what_changes_while_it_is_fetched_is_not_kept(told: pb.WatchResponse) -> None:
    service = Service()
    service.kept, service.held = {("n", b"a"): b"old", ("n", b"b"): b"old"}, []
    async with near_of(service) as near:
        call = asyncio.create_task(near.get("n", [b"a", b"b"]))
        await turns()
        service.kept["n", b"a"] = b"new"
        service.news.append(told)
        await service.deliver()
        service.held[0].set()
        assert await call == [b"old", b"old"]
        service.held = None
        assert await near.get("n", [b"a"]) == [b"new"]


async def test_an_invalidation_of_a_later_contract_forgets_everything() -> None:
    service = Service()
    service.kept = {("n", b"a"): b"1"}
    async with near_of(service) as near:
        await near.get("n", [b"a"])
        service.news.append(pb.WatchResponse())
        await service.deliver()
        assert near.held_bytes == 0


@pytest.mark.parametrize(("ttl_left", "nearly"), [(0.5, 0.4), (10.0, 9.9), (None, BOUND_S - 0.1)])
async def test_no_entry_outlives_its_end_which_nobody_tells_of_later(ttl_left: float | None, nearly: float) -> None:
    service = Service()
    service.kept, service.ttl_left = {("n", b"a"): b"1"}, ttl_left
    async with near_of(service) as near:
        await near.get("n", [b"a"])
        service.now_s += nearly
        await service.prove()
        assert await near.get("n", [b"a"]) == [b"1"]
        assert len(service.asked) == 1
        del service.kept["n", b"a"]
        service.now_s += 0.1
        await service.prove()
        assert await near.get("n", [b"a"]) == [None]


async def test_an_entry_that_ended_on_its_way_is_not_kept() -> None:
    service = Service()
    service.kept, service.ttl_left = {("n", b"a"): b"1"}, 0.0
    async with near_of(service) as near:
        for _ in range(2):
            assert await near.get("n", [b"a"]) == [b"1"]
    assert len(service.asked) == 2


# When it may not know


async def test_without_a_watch_memory_answers_for_the_bound_only() -> None:
    service = Service()
    service.kept, service.refuses_watches = {("n", b"a"): b"1"}, True
    async with near_of(service) as near:
        for seconds, asked in ((0.0, 1), (0.9, 1), (0.2, 2)):
            service.now_s += seconds
            assert await near.get("n", [b"a"]) == [b"1"]
            assert len(service.asked) == asked
        assert not near.watching


async def test_a_slow_answer_is_as_old_as_its_question() -> None:
    service = Service()
    service.kept, service.held, service.refuses_watches = {("n", b"a"): b"1"}, [], True
    async with near_of(service) as near:
        call = asyncio.create_task(near.get("n", [b"a"]))
        await turns()
        service.now_s += 0.9
        service.held[0].set()
        await call
        service.held = None
        service.now_s += 0.2
        await near.get("n", [b"a"])
    assert service.asked == [[b"a"], [b"a"]]


async def test_a_namespace_that_is_not_watched_is_kept_for_the_bound_only() -> None:
    service = Service()
    service.kept = {("n", b"a"): b"1", ("m", b"a"): b"1"}
    async with near_of(service, namespaces=["m"]) as near:
        await near.get("n", [b"a"])
        await near.get("m", [b"a"])
        service.now_s += BOUND_S
        await service.prove()
        await near.get("n", [b"a"])
        await near.get("m", [b"a"])
    assert len(service.asked) == 3


async def test_a_watch_that_breaks_takes_everything_along_and_is_begun_again() -> None:
    service = Service()
    service.kept = {("n", b"a"): b"1"}
    async with near_of(service) as near:
        await near.get("n", [b"a"])
        await service.end_watch()
        assert (near.watching, near.held_bytes) == (False, 0)
        service.next_watch.set()
        await turns()
        await service.deliver()
        assert near.watching
        await near.get("n", [b"a"])
        service.now_s += BOUND_S
        await service.prove()
        await near.get("n", [b"a"])
    assert service.asked == [[b"a"], [b"a"]]


async def test_a_connection_that_was_cut_without_a_word_answers_for_the_bound_only() -> None:
    service = Service()
    service.kept = {("n", b"a"): b"1"}
    async with near_of(service) as near:
        await near.get("n", [b"a"])
        service.cut = True
        service.now_s += 0.9
        await service.prove()
        assert await near.get("n", [b"a"]) == [b"1"]
        service.now_s += 0.2
        await service.prove()
        assert near.watching
        with pytest.raises(AwayError):
            await near.get("n", [b"a"])


async def test_a_fault_of_the_watch_is_raised_at_the_end_and_not_hidden() -> None:
    class Broken(Service):
        async def watch(self, namespaces: Sequence[str] = ()) -> AsyncIterator[pb.WatchResponse]:
            yield BEGAN
            raise TypeError("no invalidation")

    with pytest.raises(TypeError, match="no invalidation"):
        async with NearCache(Broken()):
            await turns()


def test_a_bound_is_positive() -> None:
    with pytest.raises(ValueError, match="bound_s must be positive, not 0"):
        NearCache(Service(), bound_s=0)


# Laws

SIZES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 900)), max_size=60)


@given(max_bytes=st.integers(0, 8_000), asked=SIZES)
@settings(deadline=None)
def test_memory_stays_within_its_bytes_and_the_last_asked_stay(max_bytes: int, asked: list[tuple[int, int]]) -> None:
    async def run() -> None:
        service = Service()
        sizes: dict[bytes, int] = {}
        async with near_of(service, max_bytes=max_bytes) as near:
            for number, size in asked:
                key = bytes([number])
                service.kept.setdefault(("n", key), bytes(size))
                await near.get("n", [key])
                sizes.pop(key, None)
                sizes[key] = OVERHEAD_BYTES + 1 + len(service.kept["n", key])
                assert near.held_bytes <= max_bytes
            service.asked.clear()
            room = max_bytes
            for key in reversed(sizes):
                room -= sizes[key]
                if room < 0:
                    break
                await near.get("n", [key])
            assert service.asked == []

    asyncio.run(run())


KEY = b"a"
# One key, and oftener than chance would have it what makes it near: most stories else would change what nobody holds.
STEPS = st.one_of(
    st.just(("get", None)),
    st.just(("settle", None)),
    st.tuples(st.sampled_from(["hold", "write", "own write", "own delete", "clear", "lost"]), st.none()),
    st.tuples(st.sampled_from(["prove", "cut", "mend", "break", "begin"]), st.none()),
    st.tuples(st.just("answer"), st.integers(0, 2)),
    st.tuples(st.just("deliver"), st.integers(1, 3)),
    st.tuples(st.just("pass"), st.sampled_from([0.25, 0.5, 1.5])),
)


class Story:
    """A near cache, other writers and a network that delays, loses and breaks, one step after another."""

    def __init__(self, service: Service, near: NearCache) -> None:
        self.service = service
        self.near = near
        self.writes = 0
        self.waiting: list[tuple[asyncio.Task[None], asyncio.Event]] = []

    async def step(self, what: str, argument: Any) -> None:
        await getattr(self, what.replace(" ", "_"))(*([] if argument is None else [argument]))
        await turns()

    def value(self) -> bytes:
        self.writes += 1
        return b"%d" % self.writes

    async def settle(self) -> None:
        """All is well, and the key is near."""
        for what in (self.mend, self.begin, self.service.deliver, self.get, self.prove):
            await what()
            await turns()

    async def write(self) -> None:
        self.service.write(KEY, self.value())

    async def own_write(self) -> None:
        await self.near.put("n", {KEY: self.value()})

    async def own_delete(self) -> None:
        await self.near.delete("n", [KEY])

    async def clear(self) -> None:
        self.service.empty()

    async def get(self) -> None:
        since_s, before = self.service.now_s - BOUND_S, len(self.service.asked)
        try:
            (value,) = await self.near.get("n", [KEY])
        except AwayError:
            return
        right = self.service.current_since(("n", KEY), since_s)
        assert value in right, f"{value!r} from {'memory' if len(self.service.asked) == before else 'the service'}, right are {right}"

    async def hold(self) -> None:
        """A get whose answer comes later; one from memory is at once."""
        self.service.held = []
        task = asyncio.create_task(self.get())
        await turns()
        gates, self.service.held = self.service.held, None
        if gates:
            self.waiting.append((task, gates[0]))
        else:
            await task

    async def answer(self, index: int) -> None:
        if index < len(self.waiting):
            task, gate = self.waiting.pop(index)
            gate.set()
            await task

    async def deliver(self, most: int) -> None:
        if not self.service.cut:
            await self.service.deliver(most)

    async def lost(self) -> None:
        self.service.news = [BEGAN] * (BEGAN in self.service.news) + [LOST]

    async def prove(self) -> None:
        await self.service.prove()

    async def cut(self) -> None:
        self.service.cut = True

    async def mend(self) -> None:
        self.service.cut = False

    async def break_(self) -> None:
        await self.service.end_watch()

    async def begin(self) -> None:
        self.service.next_watch.set()

    async def pass_(self, seconds: float) -> None:
        self.service.now_s += seconds


@given(steps=st.lists(STEPS, min_size=30, max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_answer_is_staler_than_the_bound_however_the_network_fails(steps: list[tuple[str, Any]]) -> None:
    async def run() -> None:
        service = Service()
        async with near_of(service) as near:
            story = Story(service, near)
            for what, argument in steps:
                await story.step({"break": "break_", "pass": "pass_"}.get(what, what), argument)
            for task, gate in story.waiting:
                gate.set()
                await task

    asyncio.run(run())


# The service itself


async def test_in_front_of_the_real_service(suite: Suite) -> None:
    async with CacheClient(suite.addresses["cache"]) as cache, NearCache(cache, bound_s=30.0) as near:
        await near.put("near", {b"a": b"1"}, ttl=60)
        for _ in range(2):
            assert await near.get("near", [b"a", b"none"]) == [b"1", None]
        assert near.hits == 1
        await cache.delete("near", [b"a"])
        await near.delete("near", [b"b"])
        await near.clear("near")
        assert await near.get("near", [b"a"]) == [None]
