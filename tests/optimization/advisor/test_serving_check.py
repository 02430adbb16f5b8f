"""What is fast enough by itself and slower through the service: told before anything is trained on it."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from services.optimization.advisor.guess import Guess, Loss, Prior
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.search import Search, Stop
from services.optimization.advisor.serving_check import ServingCheck
from services.optimization.advisor.wanted import Wanted
from services.optimization.recipe import Step
from services.optimization.report import Interval

WIDE, WIDE_TAUGHT, NARROW, NARROW_TAUGHT = (Step(technique=name) for name in ("wide", "wide_taught", "narrow", "narrow_taught"))
WIDE_SHAPE = Rung("shape-wide", (WIDE,), ("wide",), 20, is_shape=True)
WIDE_RUNG = Rung("wide", (WIDE_TAUGHT,), ("wide", "wide-taught"), 600, shape="shape-wide")
NARROW_SHAPE = Rung("shape-narrow", (NARROW,), ("narrow",), 20, is_shape=True)
NARROW_RUNG = Rung("narrow", (NARROW_TAUGHT,), ("narrow", "narrow-taught"), 600, shape="shape-narrow")
PLAIN = Rung("plain", (Step(technique="plain"),), ("plain",), 10)
SPEEDS = {"shape-wide": 10.0, "wide": 10.2, "shape-narrow": 14.0, "narrow": 14.1, "plain": 2.0, "longer": 14.0, "faster": 16.0}
TARGET = 6.0


def around(value: float, share: float = 0.05) -> Interval:
    return Interval(estimate=value, low=value * (1 - share), high=value * (1 + share))


def prior(speedup: float, loss: float = 0.0) -> Prior:
    return Prior(Guess(speedup, 0.3 if speedup != 1 else 0.0), Guess(1.0, 0.0), Loss(loss), "told")


PRIORS = {
    "wide": prior(9),
    "wide-taught": prior(1, 0.002),
    "narrow": prior(9),
    "narrow-taught": prior(1, 0.02),
    "plain": prior(2),
}


class Service:
    """Serves at the speeds it was given, and tells what was served."""

    def __init__(self, served: dict[str, Interval | None]) -> None:
        self.served, self.asked = served, list[str]()

    def __call__(self, rung: Rung) -> Interval | None:
        self.asked.append(rung.name)
        return self.served[rung.name]


def trial_of(rung: Rung) -> Trial:
    loss = None if rung.is_shape else around(0.004)
    return Trial(rung, around(SPEEDS[rung.name]), 1.0, loss, accepted=not rung.is_shape)


def play(
    service: Service,
    target: float | None = TARGET,
    rungs: tuple[Rung, ...] = (WIDE_SHAPE, WIDE_RUNG, NARROW_SHAPE, NARROW_RUNG),
    priors: Mapping[str, Prior] = MappingProxyType(PRIORS),
) -> tuple[list[str], Stop, list[str]]:
    search = Search(rungs, Wanted(0.01, served_speedup=target), priors)
    told: list[str] = []
    check, names = ServingCheck(search, service, told.append), []
    while isinstance(rung := search.next(1e6), Rung):
        names.append(rung.name)
        trial = trial_of(rung)
        search.learn(trial)
        check.after(trial)
    return names, rung, told


def test_a_shape_that_is_served_too_slowly_is_not_trained() -> None:
    service = Service({"shape-wide": around(5.5), "shape-narrow": around(8), "narrow": around(8)})
    names, stop, told = play(service)
    assert names == ["shape-wide", "shape-narrow", "narrow"]
    assert stop.is_reached
    assert service.asked == ["shape-wide", "shape-narrow"]  # what a shape has shown is not asked again
    assert any("5.50" in line and "not surely 6" in line for line in told)


def test_what_is_served_fast_enough_is_trained_at_once() -> None:
    service = Service({"shape-wide": around(8)})
    names, stop, _ = play(service)
    assert names == ["shape-wide", "wide"]
    assert stop.is_reached


def test_a_run_that_tells_little_gives_nothing_up() -> None:
    """Both may be fast enough: the likelier one is trained, then served again."""
    service = Service({"shape-wide": around(7.3, 0.4), "shape-narrow": around(11.9, 0.4), "narrow": around(9)})
    names, stop, _ = play(service)
    assert names == ["shape-wide", "shape-narrow", "narrow"]
    assert service.asked == ["shape-wide", "shape-narrow", "narrow"]
    assert stop.is_reached


def test_a_doubtful_one_in_hand_is_left_for_what_is_faster_alone() -> None:
    """Another training of the same shape is served no faster; what is a little faster by itself may be enough."""
    longer = Rung("longer", (Step(technique="narrow_longer"),), ("narrow", "narrow-longer"), 700, shape="shape-narrow")
    faster = Rung("faster", (Step(technique="faster"),), ("faster",), 800)
    priors = {**PRIORS, "narrow-longer": prior(1, 0.001), "faster": Prior(Guess(16.0, 0.05), Guess(1.0, 0.0), Loss(0.002), "told")}
    service = Service({"shape-narrow": around(6.2), "narrow": around(6.2), "faster": around(7.5)})
    names, stop, _ = play(service, rungs=(NARROW_SHAPE, NARROW_RUNG, longer, faster), priors=priors)
    assert "longer" not in names[2:]
    assert names[-1] == service.asked[-1] == "faster"
    assert stop.is_reached
    names, stop, _ = play(service, rungs=(NARROW_SHAPE, NARROW_RUNG))
    assert names == ["shape-narrow", "narrow"]
    assert not stop.is_reached  # the final run decides


def test_what_was_served_fast_enough_is_not_given_up_for_a_doubtful_one() -> None:
    service = Service({"shape-narrow": around(7), "plain": around(6.2, 0.15)})
    search = Search((PLAIN, NARROW_SHAPE, NARROW_RUNG), Wanted(0.01, served_speedup=TARGET), PRIORS)
    check = ServingCheck(search, service, lambda line: None)
    for trial in (trial_of(NARROW_SHAPE), replace(trial_of(PLAIN), speedup=around(10.0))):
        search.learn(trial)
        check.after(trial)
    assert search.next(1e6) is NARROW_RUNG


def test_what_came_out_slower_than_its_shape_is_served_itself() -> None:
    service = Service({"shape-narrow": around(6.8), "narrow": around(5.0)})
    search = Search((NARROW_SHAPE, NARROW_RUNG), Wanted(0.01, served_speedup=TARGET), PRIORS)
    check = ServingCheck(search, service, lambda line: None)
    for trial in (trial_of(NARROW_SHAPE), replace(trial_of(NARROW_RUNG), speedup=around(10.0))):
        search.learn(trial)
        check.after(trial)
    assert service.asked == ["shape-narrow", "narrow"]
    assert search.next(1e6).reason != "the target is met"


def test_a_failure_of_one_is_no_failure_of_all() -> None:
    service = Service({"shape-wide": None, "wide": around(5), "shape-narrow": around(8)})
    names, stop, told = play(service)
    assert service.asked == ["shape-wide", "wide", "shape-narrow"]
    assert stop.is_reached
    assert sum("could not be served" in line for line in told) == 1
    assert names[-1] == "narrow"


def test_a_search_that_tries_everything_serves_nothing() -> None:
    service = Service({})
    search = Search((PLAIN,), Wanted(0.01, served_speedup=1.5), PRIORS, exhaustive=True)
    search.learn(trial_of(PLAIN))
    ServingCheck(search, service, lambda line: None).after(trial_of(PLAIN))
    assert service.asked == []


def test_what_has_no_shape_is_served_before_the_search_ends_on_it() -> None:
    service = Service({"plain": around(1.4)})
    names, stop, _ = play(service, 1.5, (PLAIN,))
    assert names == service.asked == ["plain"]
    assert not stop.is_reached


@pytest.mark.parametrize("target", [TARGET, None])
def test_without_a_service_or_a_target_what_is_fast_by_itself_is_enough(target: float | None) -> None:
    service = Service({"shape-wide": None, "wide": None})
    names, stop, told = play(service, target)
    assert "wide" in names
    assert stop.is_reached is (target is not None)
    assert service.asked == ([] if target is None else ["shape-wide", "wide"])
    assert sum("could not be served" in line for line in told) == len(service.asked)


def test_what_is_too_slow_by_itself_is_not_served() -> None:
    service = Service({})
    search = Search((WIDE_SHAPE, WIDE_RUNG), Wanted(0.01, served_speedup=TARGET), PRIORS)
    check = ServingCheck(search, service, lambda line: None)
    check.after(replace(trial_of(WIDE_SHAPE), speedup=around(5.0)))
    check.after(Trial(WIDE_SHAPE, reason="it could not be made"))
    check.after(replace(trial_of(WIDE_RUNG), accepted=False))
    assert service.asked == []
