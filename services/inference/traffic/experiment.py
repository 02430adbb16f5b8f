"""What outcomes say about an arm against its control: a test that may be read after every outcome, and one that may be made once.

Always valid: the mixture sequential probability ratio test of Johari, Pekelis, Walsh ("Always Valid Inference", Operations Research
2022), whose statistic is Robbins' normal mixture, with the variance estimated from the outcomes, as in the asymptotic confidence
sequences of Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2021). Looking again and again at an ordinary test instead finds a
difference sooner or later where there is none.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from services.inference.traffic.rates import Estimate
from services.inference.traffic.rates import interval as rate_interval
from services.inference.traffic.tallies import Outcomes

LEAST = 20  # outcomes of an arm before it is compared: a variance from fewer is no estimate
# The mixture is widest where the interval is to be tightest, at about this many outcomes in all; elsewhere it costs little.
TIGHTEST = 1000
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class FixedHorizon:
    """`p_value` is None before both arms have what is needed: a look before the horizon would count as none."""

    needed_per_arm: int
    reached: bool
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`difference` is the arm's mean minus the control's; its interval, of 1 - `alpha`, and `p_value` hold at every look at once."""

    difference: Estimate
    p_value: float
    alpha: float
    is_rate: bool

    @property
    def verdict(self) -> str:
        """In words."""
        low, middle, high = (
            _signed(bound, self.is_rate) for bound in (self.difference.low, self.difference.estimate, self.difference.high)
        )
        told = f"{middle} ({1 - self.alpha:.4g} interval {low} to {high})"
        if self.difference.low > 0:
            return f"higher than the control: {told}"
        if self.difference.high < 0:
            return f"lower than the control: {told}"
        return f"no difference found so far: {told}"


def mean(outcomes: Outcomes, alpha: float) -> Estimate:
    """The mean of an arm's outcomes with an interval that holds at every look at once."""
    moments = outcomes.moments
    if outcomes.is_rate:
        return rate_interval(moments.total, moments.count, alpha)
    width = math.inf if moments.count < LEAST else _width(moments.variance / moments.count, moments.count, alpha)
    return Estimate(moments.mean, moments.mean - width, moments.mean + width)


def compare(control: Outcomes, arm: Outcomes, alpha: float) -> Comparison | None:
    """None before each has LEAST outcomes."""
    a, b = control.moments, arm.moments
    if min(a.count, b.count) < LEAST:
        return None
    count, squared_error = a.count + b.count, _variance(control) / a.count + _variance(arm) / b.count
    apart, width = b.mean - a.mean, _width(squared_error, count, alpha)
    difference = Estimate(apart, apart - width, apart + width)
    return Comparison(difference, _p_value(apart, squared_error, count, alpha), alpha, arm.is_rate)


def fixed_horizon(control: Outcomes, arm: Outcomes, alpha: float, minimum_effect: float, power: float) -> FixedHorizon | None:
    """The two-sample z-test at the sample size that finds a difference of `minimum_effect` with the chance `power`.

    The size rests on the variances seen so far; None before each arm has LEAST outcomes to tell them.
    """
    a, b = control.moments, arm.moments
    if min(a.count, b.count) < LEAST:
        return None
    spread = _variance(control) + _variance(arm)
    quantiles = _NORMAL.inv_cdf(1 - alpha / 2) + _NORMAL.inv_cdf(power)
    needed = max(LEAST, math.ceil(spread * (quantiles / minimum_effect) ** 2))
    reached = min(a.count, b.count) >= needed
    error = math.sqrt(_variance(control) / a.count + _variance(arm) / b.count)
    return FixedHorizon(needed, reached, _two_sided(abs(b.mean - a.mean), error) if reached else None)


def _two_sided(apart: float, error: float) -> float:
    if error <= 0:
        return 1.0
    return math.erfc(apart / error / math.sqrt(2))


def _variance(outcomes: Outcomes) -> float:
    """Of one outcome. A rate of 0 or 1 so far is not known to stay there: one success and one failure are put to it."""
    moments = outcomes.moments
    if not outcomes.is_rate:
        return moments.variance
    rate = (moments.total + 1) / (moments.count + 2)
    return rate * (1 - rate)


def _mixing(alpha: float) -> float:
    """Variance of the mixture, in units of one outcome's, that makes the interval tightest at TIGHTEST outcomes."""
    bar = -2 * math.log(alpha)
    return (bar + math.log(bar + 1)) / TIGHTEST


def _width(squared_error: float, count: int, alpha: float) -> float:
    """Half the interval's width: the least difference whose likelihood ratio against the mixture is alpha.

    Outcomes that have all been equal tell nothing about how far others may lie.
    """
    if squared_error <= 0:
        return math.inf
    mixed = count * _mixing(alpha)
    return math.sqrt(squared_error * 2 * (1 + mixed) / mixed * (math.log1p(mixed) / 2 - math.log(alpha)))


def _p_value(apart: float, squared_error: float, count: int, alpha: float) -> float:
    """The inverse of the mixture likelihood ratio against no difference; it passes alpha just where the interval passes 0."""
    if squared_error <= 0:
        return 1.0
    mixed = count * _mixing(alpha)
    log_ratio = apart * apart / squared_error / 2 * mixed / (1 + mixed) - math.log1p(mixed) / 2
    return math.exp(-max(0.0, log_ratio))


def _signed(value: float, is_rate: bool) -> str:
    return f"{value * 100:+.3g} points" if is_rate else f"{value:+.4g}"
