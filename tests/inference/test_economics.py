"""When looking answers up is given up and taken up again: laws over any costs, with a clock that the test moves."""

import hashlib
import random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.inference.economics import LEAST_ROWS, MARGIN, PATIENCE_S, PROBED, Economics

costs = st.floats(1e-6, 1.0)


class Workload:
    """Calls of one row each `every_s`, whose lookup and computation cost what is said."""

    def __init__(self, economics: Economics, seed: int = 0) -> None:
        self.economics = economics
        self.now = 0.0
        self.switches: list[float] = []
        self.asked = self.looked_up = 0
        self._draw = random.Random(seed)

    def run(self, seconds: float, *, lookup_s: float, hit: float, compute_s: float, every_s: float = 0.05) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += every_s
            self.asked += 1
            self._call(self._draw.randbytes(8), lookup_s, self._draw.random() < hit, compute_s)

    def _call(self, key: bytes, lookup_s: float, is_hit: bool, compute_s: float) -> None:
        wanted = self.economics.wants(key)
        if wanted:
            self.looked_up += 1
            if self.economics.looked_up(1, is_hit, lookup_s, self.now):
                self.switches.append(self.now)
        if not (wanted and is_hit):
            self.economics.computed(1, compute_s)


HOPELESS = {"lookup_s": 1e-3, "hit": 0.0, "compute_s": 1e-2}
GOOD = {"lookup_s": 1e-3, "hit": 0.9, "compute_s": 1e-2}


def test_a_hopeless_cache_is_given_up_after_its_time_and_says_why() -> None:
    load = Workload(Economics())
    load.run(PATIENCE_S, **HOPELESS)
    assert load.economics.on
    assert load.economics.reason == ""
    load.run(LEAST_ROWS * 0.05 + 5, **HOPELESS)
    assert not load.economics.on
    assert load.economics.reason == "a lookup takes 1000 µs per row and knows 0.0% of them, computing takes 10000 µs per row"


def test_a_cache_slower_than_the_model_is_given_up_however_much_it_knows() -> None:
    load = Workload(Economics())
    load.run(120, lookup_s=2e-3, hit=0.99, compute_s=1e-3)
    assert not load.economics.on


def test_few_keys_are_looked_up_while_it_is_given_up_and_they_bring_it_back() -> None:
    load = Workload(Economics())
    load.run(120, **HOPELESS)
    asked, looked_up = load.asked, load.looked_up
    load.run(600, **HOPELESS)
    assert not load.economics.on
    assert 0 < (load.looked_up - looked_up) / (load.asked - asked) < 2 * PROBED / 256
    load.run(900, **GOOD)
    assert load.economics.on
    assert load.economics.reason == ""
    assert len(load.switches) == 2


def test_the_keys_looked_up_meanwhile_are_always_the_same() -> None:
    """So what they find is what all would: an answer that was stored is asked for again under its own key."""
    load = Workload(Economics())
    load.run(120, **HOPELESS)
    keys = [hashlib.blake2b(number.to_bytes(4)).digest() for number in range(5000)]
    first = [load.economics.wants(key) for key in keys]
    assert 0 < sum(first) < 100
    assert [load.economics.wants(key) for key in keys] == first


def test_a_good_cache_stays() -> None:
    load = Workload(Economics())
    load.run(900, **GOOD)
    assert load.switches == []
    assert load.economics.saved_s > load.economics.lookup_s


def test_a_stall_shorter_than_the_patience_switches_nothing() -> None:
    load = Workload(Economics())
    for _ in range(20):
        load.run(60, **GOOD)
        load.run(PATIENCE_S / 3, lookup_s=0.02, hit=0.0, compute_s=1e-2)
    assert load.switches == []


@settings(deadline=None)  # hundreds of calls each
@given(lookup_s=costs, hit=st.floats(0, 0.95), compute_s=costs, seed=st.integers(0, 1000))  # all known: nothing tells what computing takes
def test_a_steady_workload_switches_at_most_once_and_the_right_way(lookup_s: float, hit: float, compute_s: float, seed: int) -> None:
    saved_s = hit * compute_s
    assume(not lookup_s / 2 < saved_s < lookup_s * 2)  # near the break-even either is right
    load = Workload(Economics(), seed)
    load.run(400, lookup_s=lookup_s, hit=hit, compute_s=compute_s, every_s=0.1)
    assert len(load.switches) <= 1
    assert load.economics.on == (saved_s > lookup_s)


@settings(deadline=None)
@given(hit=st.floats(0.05, 1), compute_s=st.floats(1e-4, 1.0), ratio=st.floats(1 / MARGIN + 0.01, MARGIN - 0.01))
def test_costs_within_the_margin_never_switch_back_and_forth(hit: float, compute_s: float, ratio: float) -> None:
    """Steady costs, told exactly: hits come as shares of large calls."""
    economics, switches = Economics(), 0
    rows = 1000
    hits = max(1, round(hit * rows))
    for second in range(1000):
        switches += economics.looked_up(rows, hits, ratio * hits * compute_s, float(second))
        economics.computed(rows, rows * compute_s)
    assert switches == 0


@given(times=st.lists(st.tuples(st.floats(0, 1e-3), st.booleans(), st.floats(0, 1e-2), st.floats(0, 20)), max_size=200))
def test_switches_are_never_closer_than_the_patience(times: list[tuple[float, bool, float, float]]) -> None:
    economics, now, last = Economics(), 0.0, 0.0
    for lookup_s, is_hit, compute_s, pause_s in times:
        now += pause_s
        economics.computed(64, 64 * compute_s)
        if economics.looked_up(64, 64 * is_hit, 64 * lookup_s, now):
            assert now - last >= PATIENCE_S
            last = now
