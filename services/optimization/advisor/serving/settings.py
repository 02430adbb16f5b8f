"""Which serving settings a version is advised to have: one knob after the other, each change kept only if it shows above the noise."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from services.optimization.advisor.serving.knobs import Knob, Settings
from services.optimization.advisor.serving.played import Played, Turn

SIFTING_ROUNDS, DECIDING_ROUNDS = 2, 6
LEAST_GAIN = 1.02  # a smaller one is not worth a setting of its own, however sure
NOISES = 2.6  # standard errors by which a change must be better: about 95 % by Student's t for the deciding rounds

# Plays several settings in turns, so many rounds each; answers what was seen of each, in their order.
Play = Callable[[Sequence[Settings], int], Sequence[Played]]
Merit = Callable[[Turn], float]


def throughput(turn: Turn) -> float:
    return turn.rows_per_second


def quickness(turn: Turn) -> float:
    """Of the slowest calls."""
    return 1 / turn.latency_s(0.99)


@dataclass(frozen=True, slots=True)
class Difference:
    """How many times as good one is as another, and the ratio below which its turns do not tell it from an equal one."""

    gain: float
    noise: float = 1.0

    @property
    def is_sure(self) -> bool:
        return self.gain > max(LEAST_GAIN, self.noise)


@dataclass(frozen=True, slots=True)
class Change:
    """Settings that were tried on top of those kept until then."""

    knob: str
    settings: Settings
    difference: Difference
    is_kept: bool = False


class NotPlayed(Exception):
    """Raised by a Play whose service goes on, but could not serve one of the settings."""


@dataclass
class Found:
    """All that was tried, in its order. `left` are knobs that the time did not allow, `failed` those that could not be tried, and why."""

    changes: list[Change] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, object]:
        """Together, what was kept."""
        return {name: value for change in self.changes if change.is_kept for name, value in change.settings.items()}


def tune(knobs: Sequence[Knob], play: Play, merit: Merit, is_over: Callable[[], bool] = lambda: False, most_at_once: int = 8) -> Found:
    """Tries each knob once, beginning with the defaults: coordinate descent, of a number of plays that is known beforehand.

    Of a knob's candidates short turns choose the best one, which then must prove itself in turns of its own: the best of several
    looks better than it is. A full grid was rejected: its plays multiply where these add up. `is_over` ends the search
    between knobs; `most_at_once`, at least 2, bounds what is played together.
    """
    found = Found()
    for knob in knobs:
        if is_over():
            found.left.append(knob.name)
            continue
        try:
            found.changes += _tried(knob, found.settings, play, merit, most_at_once)
        except NotPlayed as failure:
            found.failed[knob.name] = str(failure)
    return found


def _tried(knob: Knob, base: Settings, play: Play, merit: Merit, most_at_once: int) -> list[Change]:
    """The best one last."""
    if len(knob.candidates) == 1:
        return [_decided(knob.name, base, knob.candidates[0], play, merit)]
    sifted = list(_sifted(knob, base, play, merit, most_at_once))
    best = max(sifted, key=lambda change: change.difference.gain)
    others = [change for change in sifted if change is not best]
    return [*others, best if best.difference.gain <= 1 else _decided(knob.name, base, best.settings, play, merit)]


def _sifted(knob: Knob, base: Settings, play: Play, merit: Merit, most_at_once: int) -> Iterator[Change]:
    for start in range(0, len(knob.candidates), most_at_once - 1):
        group = knob.candidates[start : start + most_at_once - 1]
        incumbent, *played = play([base, *({**base, **candidate} for candidate in group)], SIFTING_ROUNDS)
        yield from (Change(knob.name, each, compare(incumbent, seen, merit)) for each, seen in zip(group, played, strict=True))


def _decided(name: str, base: Settings, challenger: Settings, play: Play, merit: Merit) -> Change:
    before, after = play([base, {**base, **challenger}], DECIDING_ROUNDS)
    difference = compare(before, after, merit)
    return Change(name, challenger, difference, difference.is_sure)


def compare(before: Played, after: Played, merit: Merit) -> Difference:
    """By the geometric mean of their ratios, round by round.

    The noise is what these ratios differ by among themselves. What the turns of one differ by was rejected: most of it is the machine's
    speed that day, which both feel in a round.
    """
    old, new = ([merit(turn) for turn in played.turns] for played in (before, after))
    if not all(new):
        return Difference(0.0)
    if not all(old):  # it did not even answer, at times
        return Difference(math.inf)
    logs = [math.log(value / known) for known, value in zip(old, new, strict=True)]
    error = statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    return Difference(math.exp(statistics.fmean(logs)), math.exp(NOISES * error))
