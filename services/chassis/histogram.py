"""Counts of values by size."""

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """`counts[i]` values were at most `bounds[i]` and more than the bound before; the last count is of values beyond every bound.

    prometheus_client's own was rejected: it takes a lock or two for each value, and GetStatistics could not read its counts back.
    Observed on one thread, read on any: a reader may miss the last value, and sees no count twice.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
