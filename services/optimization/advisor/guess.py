"""Figures before they are measured: what they are likely to be, and how sure that is."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

_NORMAL = NormalDist()


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
    """A loss of quality, exponential with this mean (0: none): small ones are likely, and large ones never impossible."""

    mean: float

    def __add__(self, other: Self) -> "Loss":
        return Loss(self.mean + other.mean)

    def chance_within(self, bound: float) -> float:
        """That it is at most `bound`."""
        return 1.0 if self.mean <= 0 else 1 - math.exp(-bound / self.mean)


@dataclass(frozen=True, slots=True)
class Prior:
    """What one part of a recipe is expected to bring, beside the same model without it."""

    speedup: Guess
    size_ratio: Guess
    loss: Loss
    basis: str  # "rule of thumb", or how many measurements
