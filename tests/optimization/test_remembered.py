"""Named arrays kept in a cache that may fail, hang, forget or damage them."""

import math
import socket
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hone.client import Client
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from services.optimization.remembered import LARGEST_BYTES, NOTHING, SLICE_BYTES, Arrays, Remembered
from services.optimization.remembered.link import Link
from tests.optimization.fake_cache import FakeCache, remembering

DTYPES = st.sampled_from([np.dtype(name) for name in ("float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool")])
ARRAYS = st.dictionaries(st.text(max_size=9), npst.arrays(DTYPES, npst.array_shapes(min_dims=0, max_dims=3, min_side=0)), max_size=4)
LARGE: Arrays = {"a": np.random.default_rng(0).normal(size=(70, SLICE_BYTES // 4 // 2)).astype(np.float32).T, "b": np.arange(3)}


def same(found: Arrays | None, right: Arrays) -> bool:
    if found is None or found.keys() != right.keys():
        return False
    return all((found[n].dtype, found[n].shape, found[n].tobytes()) == (a.dtype, a.shape, a.tobytes()) for n, a in right.items())


@given(ARRAYS)
def test_what_is_kept_is_found_byte_for_byte(arrays: Arrays) -> None:
    remembered = remembering(FakeCache())
    remembered.keep("digest", arrays)
    assert same(remembered.find("digest"), arrays)


def test_it_lies_in_slices_that_the_service_takes_and_in_its_namespace() -> None:
    cache = FakeCache()
    remembering(cache).keep("digest", LARGE)
    assert same(remembering(cache).find("digest"), LARGE)
    assert remembering(cache).find("another") is None
    assert remembering(cache, "another").find("digest") is None
    assert max(map(len, cache.kept.values())) <= SLICE_BYTES


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "forgotten": lambda kept: None,
    "cut": lambda kept: kept[:-1],
    "a bit": lambda kept: kept[:-1] + bytes([kept[-1] ^ 1]),
    "empty": lambda kept: b"",
    "many slices": lambda kept: b'{"slices": 1000000000000, "sha256": ""}',
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("index", [0, 1, -2, -1])
def test_what_is_not_whole_is_a_miss_and_no_outage(damage: Callable[[bytes], bytes | None], index: int) -> None:
    cache = FakeCache()
    remembered = remembering(cache)
    remembered.keep("digest", LARGE)
    remembered.keep("other", {"b": np.arange(3)})
    name = [key for key in cache.kept if b"digest" in key[1]][index]
    changed = damage(cache.kept.pop(name))
    if changed is not None:
        cache.kept[name] = changed
    assert remembered.find("digest") is None
    assert same(remembered.find("other"), {"b": np.arange(3)})
    remembered.keep("digest", LARGE)
    assert same(remembered.find("digest"), LARGE)


@pytest.mark.parametrize("fault_after", [0, 1, 2])
def test_a_cache_that_fails_is_asked_no_more_whatever_for(fault_after: int) -> None:
    cache = FakeCache()
    remembering(cache).keep("digest", LARGE)
    cache.calls, cache.fault_after = 0, fault_after
    link = Link(cache)
    remembered, another = Remembered(link, "n"), Remembered(link, "another")
    assert remembered.find("digest") is None
    assert another.find("digest") is None
    remembered.keep("digest", LARGE)
    assert (remembered.works, another.works) == (False, False)
    assert cache.calls == fault_after + 1


def test_half_of_what_was_to_be_kept_is_not_found() -> None:
    cache = FakeCache()
    cache.fault_after = 1
    remembering(cache).keep("digest", LARGE)
    assert cache.kept
    cache.fault_after = 1 << 30
    assert remembering(cache).find("digest") is None


def test_what_is_too_large_is_not_sent() -> None:
    cache = FakeCache()
    remembering(cache).keep("digest", {"a": np.broadcast_to(np.int8(0), (LARGEST_BYTES,))})
    assert cache.calls == 0


def recalled(remembered: Remembered, described: int, answer: float) -> float:
    return float(remembered.recall("kind", lambda: {"described": described}, lambda: {"x": np.array(answer)})["x"])


def test_what_is_described_alike_is_computed_once() -> None:
    cache = FakeCache()
    assert [recalled(remembering(cache), 1, answer) for answer in (1.0, 2.0)] == [1.0, 1.0]
    assert recalled(remembering(cache), 2, math.inf) == math.inf


def test_a_full_cache_and_none_compute_every_time() -> None:
    full = FakeCache()
    full.is_full = True
    assert [recalled(remembering(full), 1, answer) for answer in (1.0, 2.0)] == [1.0, 2.0]
    assert [recalled(NOTHING, 1, answer) for answer in (1.0, 2.0)] == [1.0, 2.0]


def test_nothing_is_described_where_nobody_is_asked() -> None:
    """Digests of whole models cost something."""

    def describe() -> dict[str, int]:
        raise AssertionError("described in vain")

    assert NOTHING.recall("kind", describe, lambda: {"x": np.array(1)})["x"] == 1


def test_a_service_that_hangs_costs_one_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.optimization.remembered.link.TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked: Counter[str] = Counter()
        with Client(cache=f"127.0.0.1:{silent.getsockname()[1]}", retries=False) as client:
            get = client.cache.get

            def counted(namespace: str, keys: Sequence[bytes], *, timeout: float) -> list[bytes | None]:
                asked["get"] += 1
                return get(namespace, keys, timeout=timeout)

            monkeypatch.setattr(client.cache, "get", counted)
            remembered = Remembered(Link(client.cache), "n")
            assert [recalled(remembered, 1, answer) for answer in (1.0, 2.0, 3.0)] == [1.0, 2.0, 3.0]
    assert asked == {"get": 1}
