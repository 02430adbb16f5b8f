"""Leases on a Valkey server: exclusive between replicas, and ended by their time, their holder, or nobody else."""

import asyncio

import pytest

from services.cache.leases import HELD
from services.cache.valkey_leases import ValkeyLeases
from services.cache.valkey_server import ValkeyServer
from tests.cache.valkey_servers import shared_server, valkey

__all__ = ["shared_server", "valkey"]  # fixtures

LONG_S = 60.0


@pytest.fixture
def one(valkey: ValkeyServer) -> ValkeyLeases:
    return ValkeyLeases(valkey)


@pytest.fixture
def other(valkey: ValkeyServer) -> ValkeyLeases:
    return ValkeyLeases(valkey)


async def test_of_many_who_ask_at_once_each_key_goes_to_one(one: ValkeyLeases, other: ValkeyLeases) -> None:
    keys = [b"a", b"b", b"c"]
    taken = await asyncio.gather(*(leases.take("n", keys, LONG_S) for leases in (one, other) * 10))
    for tokens in zip(*taken, strict=True):
        assert sorted(tokens)[:-1] == [HELD] * 19
        assert 0 < max(tokens) < 1 << 63


async def test_a_key_asked_for_twice_in_one_call_is_leased_once(one: ValkeyLeases) -> None:
    first, second = await one.take("n", [b"a", b"a"], LONG_S)
    assert first > 0
    assert second == HELD


async def test_parts_of_two_names_never_make_a_third(one: ValkeyLeases) -> None:
    assert min(await one.take("ab", [b"c"], LONG_S)) > 0
    assert min(await one.take("a", [b"bc", b"b\0c"], LONG_S)) > 0


async def test_a_lease_is_held_by_its_token_alone(one: ValkeyLeases, other: ValkeyLeases) -> None:
    token, second = await one.take("n", [b"a", b"b"], LONG_S)
    held = {b"b": second, b"a": token, b"c": 5}
    assert await other.keep("n", held) == [True, True, False]
    assert await other.keep("n", {b"a": token + 1}) == [False]
    assert await other.keep("m", {b"a": token}) == [False]
    assert await other.keep("n", {}) == []


async def test_only_its_token_gives_a_lease_back(one: ValkeyLeases, other: ValkeyLeases) -> None:
    token, second = await one.take("n", [b"a", b"b"], LONG_S)
    await other.end("n", {b"a": token + 1, b"b": second})
    assert await one.keep("n", {b"a": token, b"b": second}) == [True, False]
    assert [taken > 0 for taken in await other.take("n", [b"a", b"b"], LONG_S)] == [False, True]
    await other.end("n", {})


async def test_a_revoked_lease_is_nobodys_and_its_end_tells_so(one: ValkeyLeases, other: ValkeyLeases) -> None:
    first, second = await one.take("n", [b"a", b"b"], LONG_S)
    assert await one.keep("n", {b"a": first, b"b": second}) == [True, True]
    await other.revoke("n", [b"a", b"unleased"])
    assert await one.end("n", {b"a": first, b"b": second}) == [False, True]
    assert min(await other.take("n", [b"a", b"b"], LONG_S)) > 0


async def test_a_holder_that_is_gone_blocks_nobody_longer_than_its_time(one: ValkeyLeases, other: ValkeyLeases) -> None:
    (lost,) = await one.take("n", [b"a"], 0.02)
    async with asyncio.timeout(LONG_S):
        await other.wait("n", [b"a"], LONG_S)
    assert await one.keep("n", {b"a": lost}) == [False]
    (token,) = await other.take("n", [b"a"], LONG_S)
    await one.end("n", {b"a": lost})
    assert await other.keep("n", {b"a": token}) == [True]


async def test_who_waits_is_told_when_each_key_was_given_back(one: ValkeyLeases, other: ValkeyLeases) -> None:
    first, second = await one.take("n", [b"a", b"b"], LONG_S)
    waiting = asyncio.ensure_future(other.wait("n", [b"a", b"b"], LONG_S))
    await one.end("n", {b"a": first})
    for _ in range(50):  # as many round trips in which the waiter may look
        assert await one.keep("n", {b"b": second}) == [True]
    assert not waiting.done()
    await one.end("n", {b"b": second})
    async with asyncio.timeout(LONG_S):
        await waiting


async def test_waiting_ends_with_its_time_and_at_once_where_there_is_nothing_to_wait_for(one: ValkeyLeases, other: ValkeyLeases) -> None:
    await one.take("n", [b"a"], LONG_S)
    async with asyncio.timeout(LONG_S / 2):
        await other.wait("n", [b"a"], 0.01)
        await other.wait("n", [b"free"], LONG_S)
        await other.wait("n", [], LONG_S)
