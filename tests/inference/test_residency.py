"""Which versions leave memory: laws that hold for any set of them, and when a failed load is tried again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.residency import MOST_RATIO, OVERHEAD_BYTES, Footprints, Key, Resident, TooLarge, claim, to_unload
from services.inference.retries import LONGEST_PAUSE_S, SHORTEST_PAUSE_S, Retries

NOW, SPARE_S = 1000.0, 10.0
times = st.floats(0, NOW)


@st.composite
def residents(draw: st.DrawFn) -> list[Resident]:
    return [
        Resident(("m", number), draw(st.integers(1, 100)), draw(times), draw(times), draw(st.booleans()), draw(st.booleans()))
        for number in range(1, 1 + draw(st.integers(0, 8)))
    ]


def unloaded(found: list[Resident], need: int, budget: int) -> tuple[Key, ...] | None:
    return to_unload(found, need, budget, NOW, SPARE_S)


def resident(number: int, size: int = 10, *, used: float = 0, loaded: float = 0, **holds: bool) -> Resident:
    return Resident(("m", number), size, used, loaded, **holds)


@given(found=residents(), need=st.integers(0, 120), budget=st.integers(1, 300))
def test_what_is_unloaded_makes_room_and_was_free_to_go(found: list[Resident], need: int, budget: int) -> None:
    pinned = sum(each.size_bytes for each in found if each.pinned)
    if need > budget - pinned:
        with pytest.raises(TooLarge):
            unloaded(found, need, budget)
        return
    gone = unloaded(found, need, budget)
    kept = [each for each in found if each.key not in (gone or ())]
    fits = sum(each.size_bytes for each in kept) + need <= budget
    if gone is None:
        held = sum(each.size_bytes for each in found if each.held or each.pinned)
        assert held + need > budget
    else:
        assert fits
        assert not any(each.held or each.pinned for each in found if each.key in gone)


@given(found=residents(), need=st.integers(0, 120), budget=st.integers(1, 300))
def test_nothing_goes_in_vain(found: list[Resident], need: int, budget: int) -> None:
    try:
        gone = unloaded(found, need, budget) or ()
    except TooLarge:
        return
    total = sum(each.size_bytes for each in found)
    freed = {each.key: each.size_bytes for each in found if each.key in gone}
    assert all(total - sum(freed.values()) + size + need > budget for size in freed.values())


def test_the_least_recently_used_goes_first() -> None:
    found = [resident(1, used=30), resident(2, used=10), resident(3, used=20)]
    assert unloaded(found, 10, 30) == (("m", 2),)
    assert unloaded(found, 20, 30) == (("m", 2), ("m", 3))


def test_a_larger_one_that_suffices_spares_the_smaller() -> None:
    found = [resident(1, 5, used=1), resident(2, 5, used=2), resident(3, 50, used=3)]
    assert unloaded(found, 50, 60) == (("m", 3),)


def test_one_just_loaded_goes_only_when_the_others_do_not_suffice() -> None:
    fresh, old = resident(1, used=1, loaded=NOW - 1), resident(2, used=2)
    assert unloaded([fresh, old], 10, 20) == (("m", 2),)
    assert unloaded([fresh, old], 20, 20) == (("m", 2), ("m", 1))


def test_a_budget_of_nought_is_none() -> None:
    assert unloaded([resident(1, 10**12)], 10**12, 0) == ()


def test_what_can_never_fit_says_how_much_there_is() -> None:
    with pytest.raises(TooLarge, match=r"needs about 30\.0 MB of memory; models may hold 20\.0 MB$"):
        unloaded([], 30_000_000, 20_000_000)
    with pytest.raises(TooLarge, match=r"LoadModel keeps hold 15\.0 MB"):
        unloaded([resident(1, 15_000_000, pinned=True)], 10_000_000, 20_000_000)


# Footprints


@given(files=st.integers(0, 10**10), grown=st.integers(-(10**10), 10**11))
def test_a_footprint_lies_between_the_files_and_a_few_times_as_much(files: int, grown: int) -> None:
    footprints = Footprints()
    footprints.learn(("m", 1), "onnx", 10, 10, 10)
    size = footprints.learn(("m", 2), "onnx", files, grown, 0)
    assert files <= footprints.least(("m", 2), files) == size <= OVERHEAD_BYTES + MOST_RATIO * files + 1
    assert footprints.expected(("m", 2), "onnx", files) == size


def test_what_one_load_took_tells_what_the_next_of_its_format_will() -> None:
    footprints, files = Footprints(), 100 << 20
    before = footprints.expected(("b", 1), "onnx", files)
    assert footprints.learn(("c", 1), "onnx", files, 10 * files, before) == before  # with the libraries, which stay
    assert footprints.expected(("b", 1), "onnx", files) == before
    footprints.learn(("a", 1), "onnx", files, OVERHEAD_BYTES + 3 * files, before)
    assert before < footprints.expected(("b", 1), "onnx", files) == OVERHEAD_BYTES + 3 * files
    assert footprints.expected(("b", 1), "torchscript", files) == before
    assert footprints.least(("b", 1), files) == OVERHEAD_BYTES + files
    assert footprints.learn(("a", 1), "onnx", files, 2 * files, before) == 2 * files
    assert footprints.learn(("a", 1), "onnx", files, 4 * files, before) == 2 * files
    assert footprints.expected(("a", 1), "onnx", files) == footprints.least(("a", 1), files) == 2 * files
    footprints.forget(("a", 1))
    assert footprints.expected(("a", 1), "onnx", files) == OVERHEAD_BYTES + 3 * files


@given(expected=st.integers(0, 100), least=st.integers(0, 100), budget=st.integers(0, 100), pinned=st.integers(0, 100))
def test_what_may_fit_is_tried_and_what_cannot_is_refused(expected: int, least: int, budget: int, pinned: int) -> None:
    need = claim(expected, least, budget, pinned)
    kept = [resident(1, pinned, pinned=True)]
    if budget and least > budget - pinned:
        with pytest.raises(TooLarge):
            unloaded(kept, need, budget)
    else:
        assert unloaded(kept, need, budget) == ()


# Retries


@given(spreads=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_each_failure_is_followed_by_a_longer_pause_up_to_the_longest(spreads: list[float]) -> None:
    retries, now = Retries(), 0.0
    for number, spread in enumerate(spreads):
        retries.add("k", now, spread)
        pause_s = min(LONGEST_PAUSE_S, SHORTEST_PAUSE_S * 2**number)
        assert not retries.is_due("k", now + 0.79 * pause_s)
        assert retries.is_due("k", now + 1.21 * pause_s)
        now += 1.21 * pause_s
    assert retries.is_due("other", 0.0)
    retries.clear("k")
    assert retries.is_due("k", 0.0)
