"""Samples of what was measured, and the bounds of what follows from them: seeded, so that the same figures come out again."""

import math
import random
from collections.abc import Iterator, Sequence
from statistics import NormalDist

COUNT = 2000
_TAIL = COUNT // 40  # 2.5 %
_Z95 = 1.959963984540054


def scores(columns: int, seed: int) -> list[tuple[float, ...]]:
    """COUNT independent samples of so many standard normal variables.

    Latin hypercube sampling (McKay, Beckman and Conover 1979): each variable takes the middles of COUNT equally likely strata, in random
    order. Free draws would put the bounds of a single variable elsewhere with each seed.
    """
    normal, order = NormalDist(), random.Random(seed)  # noqa: S311  a sample to compute with
    strata = [normal.inv_cdf((index + 0.5) / COUNT) for index in range(COUNT)]
    return list(zip(*_shuffled(strata, columns, order), strict=True))


def _shuffled(strata: list[float], columns: int, order: random.Random) -> Iterator[list[float]]:
    for _ in range(columns):
        yield order.sample(strata, len(strata))


def at(low: float, high: float, score: float) -> float:
    """Of the normal variable whose 95 % interval this is, the value at a standard score."""
    return (low + high) / 2 + (high - low) / (2 * _Z95) * score


def ratio_at(low: float, high: float, score: float) -> float:
    """As `at`, of a positive variable whose logarithm is normal."""
    return low if low == high else math.exp(at(math.log(low), math.log(high), score))


def bounds(estimate: float, drawn: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of COUNT values, widened to hold the estimate: it is the figure at the estimates, which need not be a median."""
    ordered = sorted(drawn)
    return min(estimate, ordered[_TAIL - 1]), max(estimate, ordered[-_TAIL])
