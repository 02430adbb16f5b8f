"""How many rows per second a service answers while its slowest calls stay within a target: a pure search over callers at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from services.optimization.advisor.serving.played import Played

MOST_CALLERS = 256


@dataclass(frozen=True, slots=True)
class AtTarget:
    """The callers at once with which most rows were answered within the target."""

    callers: int
    played: Played


def capacity(play: Callable[[int], Played], max_p99_s: float, most_callers: int = MOST_CALLERS) -> AtTarget | None:
    """`play` asks with so many callers in a closed loop. None where even one caller waits for longer than the target.

    Callers are doubled until the target is missed, then the gap is halved once on the log scale: more plays than that would
    settle differences which the turns of one number of callers show as well.
    """
    met: list[AtTarget] = []
    callers = 1
    while callers <= most_callers:
        found = AtTarget(callers, play(callers))
        if found.played.latency_s(0.99) > max_p99_s:
            break
        met.append(found)
        callers *= 2
    if met and callers <= most_callers:
        between = math.isqrt(met[-1].callers * callers)
        if between > met[-1].callers and (found := AtTarget(between, play(between))).played.latency_s(0.99) <= max_p99_s:
            met.append(found)
    return max(met, key=lambda each: each.played.rows_per_second, default=None)
