"""Bounds on a rate that hold at every look at once, however often it is looked: Robbins' mixture of binomial likelihoods."""

import math
from dataclasses import dataclass

_PRIOR = 0.5  # both parameters of the Beta mixture: Jeffreys' prior, which bounds rates near 0 tightly


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate and an interval that holds the truth with the confidence asked for."""

    estimate: float
    low: float
    high: float


def log_evidence(total: float, count: int, rate: float) -> float:
    """Logarithm of the evidence against the mean being `rate`, given `count` numbers of 0 to 1 that add up to `total`.

    The mixture likelihood ratio is a nonnegative supermartingale that starts at 1 if `rate` is true, so it ever passes 1 / alpha with a
    chance of at most alpha (Ville 1939; Robbins 1970, "Statistical methods related to the law of the iterated logarithm"). For numbers
    between 0 and 1 it is conservative, by convexity of the ratio.
    """
    rest = max(0.0, count - total)
    if (rate <= 0 and total > 0) or (rate >= 1 and rest > 0):
        return math.inf
    likelihood = (total * math.log(rate) if total else 0.0) + (rest * math.log1p(-rate) if rest else 0.0)
    return _log_beta(_PRIOR + total, _PRIOR + rest) - _log_beta(_PRIOR, _PRIOR) - likelihood


def surely_above(total: float, count: int, rate: float, alpha: float) -> bool:
    """Whether the mean is above `rate`; wrong at any look at all with a chance of at most `alpha`."""
    return total > rate * count and log_evidence(total, count, rate) >= -math.log(alpha)


def surely_below(total: float, count: int, rate: float, alpha: float) -> bool:
    """Whether the mean is below `rate`; wrong at any look at all with a chance of at most `alpha`."""
    return total < rate * count and log_evidence(total, count, rate) >= -math.log(alpha)


def interval(total: float, count: int, alpha: float) -> Estimate:
    """The mean, with every rate that the evidence does not exclude: a confidence sequence. 0 to 1 before the first number."""
    if not count:
        return Estimate(0.0, 0.0, 1.0)
    mean = min(1.0, max(0.0, total / count))
    return Estimate(mean, _edge(total, count, alpha, mean, 0.0), _edge(total, count, alpha, mean, 1.0))


def _edge(total: float, count: int, alpha: float, inside: float, outside: float) -> float:
    """Where the evidence reaches 1 / alpha between the mean and the end of the scale; it only grows on the way."""
    bar = -math.log(alpha)
    if log_evidence(total, count, outside) < bar:
        return outside
    for _ in range(50):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if log_evidence(total, count, middle) < bar else (inside, middle)
    return outside


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
