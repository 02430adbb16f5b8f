"""Confidence intervals and paired tests over examples: no model, no file."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from services.optimization.report import Interval

Floats = NDArray[np.floating]
# Of sums over examples, [..., counts], to the statistic, [...].
Statistic = Callable[[Floats], Floats]

RESAMPLES = 2000
_CHUNK_CELLS = 4_000_000  # of resampling weights held at once
_Z95 = 1.959963984540054
_TAILS = (2.5, 97.5)


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927): sound near 1, where a share of equal predictions lies."""
    share, z2 = successes / trials, _Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return Interval(estimate=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def paired_difference(gained: int, lost: int, examples: int) -> Interval:
    """(gained - lost) / examples, where `gained` examples are right only after and `lost` only before.

    Bonett and Price's adjusted Wald interval (2012): one added to each discordant cell keeps its coverage with few of them.
    """
    after, before, n = (gained + 1) / (examples + 2), (lost + 1) / (examples + 2), examples + 2
    centre = after - before
    half = _Z95 * math.sqrt((after + before - centre**2) / n)
    return Interval(estimate=(gained - lost) / examples, low=max(-1.0, centre - half), high=min(1.0, centre + half))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value that both are equally often right (McNemar 1947, binomial form)."""
    n, fewer = gained + lost, min(gained, lost)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


def resampled_sums(counts: Floats, seed: int) -> Floats:
    """Sums over bootstrap samples of examples: counts [examples, k] to [RESAMPLES, k]. One seed draws the same samples for all."""
    examples = len(counts)
    random = np.random.default_rng(seed)
    rows = max(1, _CHUNK_CELLS // examples)
    share = np.full(examples, 1 / examples)
    chunks = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    return np.concatenate([random.multinomial(examples, share, size) @ counts for size in chunks])


def percentile_interval(estimate: float, drawn: Floats) -> Interval:
    low, high = (float(value) for value in np.percentile(drawn, _TAILS))
    return Interval(estimate=estimate, low=low, high=high)


def bootstrap(counts: Floats, statistic: Statistic, seed: int) -> Interval:
    """Percentile bootstrap of a statistic of the sums of counts [examples, k]; examples are drawn whole."""
    return percentile_interval(float(statistic(counts.sum(0))), statistic(resampled_sums(counts, seed)))


def never_certain(interval: Interval, examples: int) -> Interval:
    """Of a difference of shares: where all draws are the same, the bootstrap knows nothing of what a few more examples could show.

    As wide then as `paired_difference` is without a discordant pair.
    """
    if interval.low != interval.high:
        return interval
    least = paired_difference(0, 0, examples)
    return Interval(estimate=interval.estimate, low=interval.estimate + least.low, high=interval.estimate + least.high)


def bootstrap_mean(values: Floats, seed: int) -> Interval:
    """Of the mean of a sample [n]."""
    return bootstrap(values[:, None], lambda sums: sums[..., 0] / len(values), seed)


def two_sided(differences: Floats) -> float:
    """p-value that the difference is zero, from its bootstrap distribution; never below what so many draws can tell."""
    tail = min((differences <= 0).mean(), (differences >= 0).mean())
    return float(min(1.0, max(2 * tail, 2 / (len(differences) + 1))))
