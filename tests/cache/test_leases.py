"""Leases in memory: exclusive, for a time, and without a trace of who went away."""

import asyncio
import time
import tracemalloc
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from services.cache.leases import HELD, NONE_LEFT, LocalLeases

KEYS = st.sampled_from([b"a", b"b", b"c"])
NAMESPACES = st.sampled_from(["n", "m"])


async def test_of_two_who_ask_one_gets_the_lease(clock: Callable[[], float]) -> None:
    leases = LocalLeases(clock, 10)
    (first,) = await leases.take("n", [b"a"], 5)
    assert first > 0
    assert await leases.take("n", [b"a"], 5) == [HELD]
    assert (await leases.take("m", [b"a"], 5))[0] > 0
    await leases.end("n", {b"a": first})
    (second,) = await leases.take("n", [b"a"], 5)
    assert second not in (first, HELD, NONE_LEFT)


async def test_a_stranger_ends_nobodys_lease(clock: Callable[[], float]) -> None:
    leases = LocalLeases(clock, 10)
    (token,) = await leases.take("n", [b"a"], 5)
    await leases.end("n", {b"a": token + 1, b"b": token})
    await leases.end("m", {b"a": token})
    assert await leases.keep("n", {b"a": token}) == [True]


async def test_no_more_are_given_than_there_may_be(clock: Any) -> None:
    leases = LocalLeases(clock, 2)
    first, second, third = await leases.take("n", [b"a", b"b", b"c"], 5)
    assert (first > 0, second > 0, third) == (True, True, NONE_LEFT)
    clock.now_s += 5
    assert (await leases.take("n", [b"c"], 5))[0] > 0


async def test_many_short_flights_fill_no_memory(clock: Callable[[], float]) -> None:
    leases = LocalLeases(clock, 3)
    tracemalloc.start()
    try:
        for number in range(5_000):
            key = b"%d" % number
            (token,) = await leases.take("n", [key], 1e6)
            assert token > 0
            await leases.end("n", {key: token})
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 200_000


async def test_who_waits_goes_on_when_the_last_of_its_keys_is_free() -> None:
    leases = LocalLeases(time.monotonic, 10)
    first, second = await leases.take("n", [b"a", b"b"], 60)
    waiting = asyncio.ensure_future(leases.wait("n", [b"a", b"unleased", b"b"], 60))
    await leases.end("n", {b"b": second})
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    await leases.end("n", {b"a": first})
    await waiting


async def test_who_waits_goes_on_at_the_end_of_a_lost_holders_lease() -> None:
    leases = LocalLeases(time.monotonic, 10)
    await leases.take("n", [b"a"], 0.02)
    async with asyncio.timeout(30):
        await leases.wait("n", [b"a"], 60)
    assert (await leases.take("n", [b"a"], 1))[0] > 0


async def test_who_waits_goes_on_when_its_time_is_over() -> None:
    leases = LocalLeases(time.monotonic, 10)
    await leases.take("n", [b"a"], 60)
    async with asyncio.timeout(30):
        await leases.wait("n", [b"a"], 0.01)
    assert await leases.take("n", [b"a"], 60) == [HELD]


async def test_who_stops_waiting_leaves_the_lease_and_its_neighbours_in_order() -> None:
    leases = LocalLeases(time.monotonic, 10)
    (token,) = await leases.take("n", [b"a"], 60)
    gone, stays = (asyncio.ensure_future(leases.wait("n", [b"a"], 60)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert await leases.keep("n", {b"a": token}) == [True]
    await leases.end("n", {b"a": token})
    await stays


async def test_who_stores_is_waited_for_and_nobody_else(clock: Any) -> None:
    leases = LocalLeases(clock, 10)
    storing, idle = await leases.take("n", [b"storing", b"idle"], 5)
    assert await leases.keep("n", {b"storing": storing}) == [True]
    revoking = asyncio.ensure_future(leases.revoke("n", [b"unleased", b"storing", b"idle"]))
    await asyncio.sleep(0)
    clock.now_s += 6
    assert await leases.take("n", [b"storing"], 5) == [HELD]  # its time is over, its use is not
    assert not revoking.done()
    assert await leases.end("n", {b"storing": storing}) == [True]
    await revoking
    assert await leases.keep("n", {b"storing": storing, b"idle": idle}) == [False, False]


async def test_one_lease_is_for_one_who_stores(clock: Callable[[], float]) -> None:
    leases = LocalLeases(clock, 10)
    (token,) = await leases.take("n", [b"a"], 5)
    assert [await leases.keep("n", {b"a": token}) for _ in range(2)] == [[True], [False]]
    assert [await leases.end("n", {b"a": token}) for _ in range(2)] == [[True], [False]]


class LeaseMachine(RuleBasedStateMachine):
    """Leases beside a dict of who holds what until when."""

    most = 3

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0
        self.leases = LocalLeases(lambda: self.now_s, self.most)
        self.held: dict[tuple[str, bytes], tuple[int, float]] = {}
        self.kept: set[tuple[str, bytes]] = set()
        self.seen: list[tuple[str, bytes, int]] = []
        self.runner = asyncio.Runner()

    def live(self) -> dict[tuple[str, bytes], int]:
        return {name: token for name, (token, end_s) in self.held.items() if end_s > self.now_s}

    @rule(namespace=NAMESPACES, keys=st.lists(KEYS, unique=True), seconds=st.sampled_from([1.0, 2.5, 40.0]))
    def take(self, namespace: str, keys: list[bytes], seconds: float) -> None:
        for key, token in zip(keys, self.runner.run(self.leases.take(namespace, keys, seconds)), strict=True):
            live = self.live()
            if (namespace, key) in live:
                assert token == HELD
            elif len(live) >= self.most:
                assert token == NONE_LEFT
            else:
                assert token > 0
                self.held[namespace, key] = (token, self.now_s + seconds)
                self.seen.append((namespace, key, token))

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        namespace, key, token = data.draw(st.sampled_from(self.seen))
        ended = self.runner.run(self.leases.end(namespace, {key: token}))
        assert ended in ([self.live().get((namespace, key)) == token], [True])  # one that is over is one until somebody looks
        if self.live().get((namespace, key)) == token:
            del self.held[namespace, key]
            self.kept.discard((namespace, key))

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        namespace, key, token = data.draw(st.sampled_from(self.seen))
        held = self.live().get((namespace, key)) == token and (namespace, key) not in self.kept
        assert self.runner.run(self.leases.keep(namespace, {key: token})) == [held]
        if held:
            self.kept.add((namespace, key))
            self.held[namespace, key] = (token, inf)  # until it is given back

    @rule(namespace=NAMESPACES, key=KEYS)
    def revoke(self, namespace: str, key: bytes) -> None:
        if (namespace, key) not in self.kept:  # which would wait for its holder
            self.runner.run(self.leases.revoke(namespace, [key]))
            self.held.pop((namespace, key), None)

    @rule(seconds=st.sampled_from([0.25, 2.0, 50.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    def teardown(self) -> None:
        self.runner.close()


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@given(count=st.integers(1, 50))
def test_tokens_are_positive_and_differ(count: int) -> None:
    async def take() -> list[int]:
        return await LocalLeases(lambda: 0.0, count).take("n", [b"%d" % number for number in range(count)], 1)

    tokens = asyncio.run(take())
    assert len(set(tokens)) == count
    assert all(0 < token < 1 << 63 for token in tokens)
