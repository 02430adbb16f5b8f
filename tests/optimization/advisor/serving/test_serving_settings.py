"""The search for serving settings, on a service made of numbers: a known best, and noise."""

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.advisor.serving.capacity import capacity
from services.optimization.advisor.serving.knobs import Conditions, Knob, Settings, buckets, knobs
from services.optimization.advisor.serving.played import Played, Turn
from services.optimization.advisor.serving.settings import DECIDING_ROUNDS, SIFTING_ROUNDS, NotPlayed, compare, quickness, throughput, tune

KNOBS = (
    Knob("parallelism", ({"instances": 1}, {"instances": 2}, {"instances": 4})),
    Knob("batch budget", ({"batch_rows": 8}, {"batch_rows": 64})),
    Knob("remembering", ({"remember": False},)),
)


def turn(rows_per_second: float, latency_s: float = 0.01, unanswered: int = 0) -> Turn:
    return Turn(1.0, round(rows_per_second), (latency_s,) * 100, unanswered)


class Fake:
    """Answers rows by a formula of the settings, with noise of its own and the machine's, which is common to a round."""

    def __init__(self, rate: Callable[[Settings], float], noise: float = 0.0, drift: float = 0.0, seed: int = 0) -> None:
        self.rate, self.noise, self.drift, self.draw = rate, noise, drift, random.Random(seed)
        self.plays: list[tuple[list[Settings], int]] = []

    def __call__(self, settings: Sequence[Settings], rounds: int) -> list[Played]:
        self.plays.append((list(settings), rounds))
        shared = [math.exp(self.draw.gauss(0, self.drift)) for _ in range(rounds)]
        return [
            Played(tuple(turn(1e6 * self.rate(each) * this * math.exp(self.draw.gauss(0, self.noise))) for this in shared))
            for each in settings
        ]


def best_at_two(settings: Settings) -> float:
    """2 instances are 1.5 times as fast, and with them alone 64 rows 1.3 times; remembering costs nothing."""
    two = settings.get("instances") == 2
    return (1.5 if two else 1.0) * (1.3 if two and settings.get("batch_rows") == 64 else 1.0)


def test_the_best_settings_are_found_one_knob_after_the_other() -> None:
    found = tune(KNOBS, Fake(best_at_two, noise=0.01), throughput)
    assert found.settings == {"instances": 2, "batch_rows": 64}
    gains = {change.knob: change.difference.gain for change in found.changes if change.is_kept}
    assert gains == {"parallelism": pytest.approx(1.5, rel=0.05), "batch budget": pytest.approx(1.3, rel=0.05)}
    assert {str(change.settings) for change in found.changes if not change.is_kept} == {
        "{'instances': 1}",
        "{'instances': 4}",
        "{'batch_rows': 8}",
        "{'remember': False}",
    }


def test_what_disturbs_both_alike_hides_nothing() -> None:
    assert tune(KNOBS, Fake(best_at_two, noise=0.01, drift=0.5), throughput).settings == {"instances": 2, "batch_rows": 64}


def test_nothing_is_kept_for_noise_alone() -> None:
    kept = [
        change
        for seed in range(40)
        for change in tune(KNOBS, Fake(lambda _: 1.0, noise=0.2, seed=seed), throughput).changes
        if change.is_kept
    ]
    assert len(kept) <= 8  # of 120 knobs


def test_a_sure_but_tiny_gain_is_not_kept() -> None:
    assert tune(KNOBS[2:], Fake(lambda settings: 1.01 if settings else 1.0), throughput).settings == {}


def test_plays_are_bounded_and_each_knob_begins_with_what_was_kept() -> None:
    fake = Fake(best_at_two, noise=0.01)
    tune(KNOBS, fake, throughput)
    assert [rounds for _, rounds in fake.plays] == [SIFTING_ROUNDS, DECIDING_ROUNDS] * 2 + [DECIDING_ROUNDS]
    assert [settings[0] for settings, _ in fake.plays] == [{}, {}, {"instances": 2}, {"instances": 2}, {"instances": 2, "batch_rows": 64}]


def test_no_more_are_played_at_once_than_may_be() -> None:
    fake = Fake(best_at_two, noise=0.01)
    found = tune(KNOBS, fake, throughput, most_at_once=2)
    assert {len(settings) for settings, _ in fake.plays} == {2}
    assert found.settings == {"instances": 2, "batch_rows": 64}
    assert len(found.changes) == 6


def test_a_knob_that_cannot_be_tried_is_told_and_the_others_are_tried() -> None:
    fake = Fake(best_at_two, noise=0.01)

    def play(settings: Sequence[Settings], rounds: int) -> list[Played]:
        if any("batch_rows" in each for each in settings):
            raise NotPlayed("it does not fit")
        return fake(settings, rounds)

    found = tune(KNOBS, play, throughput)
    assert (found.settings, found.failed, found.left) == ({"instances": 2}, {"batch budget": "it does not fit"}, [])
    assert {change.knob for change in found.changes} == {"parallelism", "remembering"}


def test_what_looks_no_better_is_not_played_again() -> None:
    fake = Fake(lambda settings: 0.5 if settings else 1.0)
    found = tune(KNOBS[:1], fake, throughput)
    assert len(fake.plays) == 1
    assert len(found.changes) == 3


def test_the_time_that_is_over_is_told_by_what_was_left() -> None:
    fake = Fake(best_at_two)
    found = tune(KNOBS, fake, throughput, lambda: len(fake.plays) >= 2)
    assert (found.settings, found.left) == ({"instances": 2}, ["batch budget", "remembering"])


def test_latency_is_what_its_slowest_calls_take() -> None:
    slow, fast = Played((turn(10, 0.2),) * 3), Played((turn(10, 0.1),) * 3)
    assert compare(slow, fast, quickness).gain == pytest.approx(2)
    refusing = Played((turn(10, 0.05, unanswered=5),) * 3)
    assert compare(slow, refusing, quickness).gain == 0
    assert compare(refusing, slow, quickness).is_sure


def test_one_turn_proves_nothing() -> None:
    assert not compare(Played((turn(10),)), Played((turn(90),)), throughput).is_sure


@given(st.integers(1, 64), st.lists(st.integers(1, 512), max_size=40), st.none() | st.integers(1, 256))
def test_no_knob_asks_for_what_cannot_be(cores: int, lengths: list[int], waiting: int | None) -> None:
    found = knobs(Conditions(cores, tuple(lengths), waiting))
    settings = [candidate for knob in found for candidate in knob.candidates]
    assert len({str(each) for each in settings}) == len(settings)
    divisions = [each for each in settings if "instances" in each]
    assert all(each["instances"] * each["threads"] <= cores and each["threads"] >= 1 for each in divisions)
    assert {each["instances"] for each in divisions} >= ({1, cores} if cores > 1 else set())
    for table in (each["buckets"] for each in settings if "buckets" in each):
        assert table == sorted(set(table))
        assert table[-1] == max(lengths)


def test_batches_that_cannot_fill_are_not_tried() -> None:
    budgets = {knob.name: knob for knob in knobs(Conditions(2, (5,), 16))}["batch budget"]
    assert [each["batch_rows"] for each in budgets.candidates] == [8, 16]


def test_rows_without_variants_do_not_decide_about_remembering() -> None:
    assert "remembering" not in {knob.name for knob in knobs(Conditions(2, (), 16, may_remember=False))}


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200), st.integers(1, 8))
def test_buckets_hold_equal_shares(lengths: list[int], count: int) -> None:
    bounds = buckets(lengths, count)
    assert list(bounds) == sorted(set(bounds))
    assert (bounds[-1], len(bounds) <= count) == (max(lengths), True)
    below = sum(length < bounds[0] for length in lengths)
    assert below <= math.ceil(len(lengths) / count)


def by_callers(callers: int) -> Played:
    """Latency grows with callers, throughput too, up to 12."""
    return Played((turn(100 * min(callers, 12), 0.002 * callers),))


@pytest.mark.parametrize(("target_s", "callers", "asked"), [(0.001, None, 1), (0.0021, 1, 2), (0.02, 8, 6), (0.024, 11, 6), (1.0, 16, 5)])
def test_capacity_is_the_most_that_meets_the_target(target_s: float, callers: int | None, asked: int) -> None:
    plays: list[int] = []

    def play(count: int) -> Played:
        plays.append(count)
        return by_callers(count)

    found = capacity(play, target_s, most_callers=16)
    assert (found.callers if found else None) == callers
    assert len(plays) == asked


def test_more_callers_than_help_are_not_told() -> None:
    found = capacity(lambda callers: Played((turn(100 - callers, 0.001),)), 1.0, most_callers=8)
    assert found is not None
    assert found.callers == 1


@given(st.lists(st.floats(1e-4, 10), min_size=1, max_size=50), st.integers(0, 20), st.floats(0.01, 1))
def test_a_request_without_an_answer_took_for_ever(latencies: list[float], unanswered: int, share: float) -> None:
    found = Turn(1.0, 1, tuple(latencies), unanswered).latency_s(share)
    within = sum(latency <= found for latency in latencies)
    assert math.isinf(found) or within >= share * (len(latencies) + unanswered) - 1e-9
    assert math.isfinite(found) == (len(latencies) >= max(1, math.ceil(share * (len(latencies) + unanswered))))
