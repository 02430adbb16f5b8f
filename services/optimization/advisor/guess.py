"""Figures before they are measured: what they are likely to be, and how sure that is."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

_NORMAL = NormalDist()
_NEGLIGIBLE = 0.05  # of two parts of a sum
_IMPOSSIBLE = -8.0  # standard deviations


@dataclass(frozen=True, slots=True)
class Guess:
    """A ratio whose logarithm is normal: its median and the standard deviation of the logarithm (0: it is known)."""

    median: float
    spread: float

    def __mul__(self, other: Self) -> "Guess":
        return Guess(self.median * other.median, math.hypot(self.spread, other.spread))

    def chance_of(self, bound: float) -> float:
        """That it is at least `bound`."""
        if bound <= 0:
            return 1.0
        if self.spread == 0:
            return float(self.median >= bound)
        return _NORMAL.cdf(math.log(self.median / bound) / self.spread)


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss of quality: what was measured of it, normal, and beside that what nobody measured, exponential with this mean.

    Of the exponential part small ones are likely, and large ones never impossible; what was measured may be a gain.
    """

    mean: float  # 0: there is no such part
    measured: float = 0.0
    spread: float = 0.0  # standard deviation of what was measured

    def __add__(self, other: Self) -> "Loss":
        return Loss(self.mean + other.mean, self.measured + other.measured, math.hypot(self.spread, other.spread))

    def chance_within(self, bound: float) -> float:
        """That it is at most `bound`: the distribution of the sum of both parts."""
        left = bound - self.measured
        if self.mean <= 0:
            return _below(left, self.spread)
        if self.spread < _NEGLIGIBLE * self.mean:
            return 1 - math.exp(-max(0.0, left) / self.mean)
        if self.mean < _NEGLIGIBLE * self.spread:  # its exponent would overflow
            return _below(left - self.mean, self.spread)
        score, ratio = left / self.spread, self.spread / self.mean
        if score < _IMPOSSIBLE:
            return 0.0
        return max(0.0, _NORMAL.cdf(score) - math.exp(ratio * (ratio / 2 - score)) * _NORMAL.cdf(score - ratio))


def _below(bound: float, spread: float) -> float:
    """That a normal variable around 0 is at most `bound`."""
    return _NORMAL.cdf(bound / spread) if spread > 0 else float(bound >= 0)


@dataclass(frozen=True, slots=True)
class Prior:
    """What one part of a recipe is expected to bring, beside the same model without it."""

    speedup: Guess
    size_ratio: Guess
    loss: Loss
    basis: str  # "rule of thumb", or how many measurements
