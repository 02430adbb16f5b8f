"""What a faster model is worth: what only the user knows, what was measured, and what follows from both."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from services.optimization.report import Interval
from services.repository.manifest import Frozen

_LEAST, _MOST = 1e-6, 1e12  # of a capacity or a ratio: beyond it something was not measured


def _check_order(interval: Interval) -> Interval:
    if not interval.low <= interval.high:
        raise ValueError(f"low, {interval.low:g}, is above high, {interval.high:g}")
    return interval


def _check_ratio(interval: Interval) -> Interval:
    if not _LEAST <= min(interval.low, interval.estimate) <= max(interval.high, interval.estimate) <= _MOST:
        raise ValueError(f"{interval.low:g} to {interval.high:g} is not within {_LEAST:g} to {_MOST:g}")
    return _check_order(interval)


Ordered = Annotated[Interval, AfterValidator(_check_order)]
Positive = Annotated[Interval, AfterValidator(_check_ratio)]


class Economics(Frozen):
    """What only the user knows. Money is in one currency; a 0 leaves out what would follow from it."""

    currency: str = Field("USD", pattern="^[A-Z]{3}$", description="ISO 4217 code of all money here")
    instance_hour_price: float = Field(ge=1e-6, le=1e6, description="money for one hour of a serving machine like the measured one")
    peak_rows_per_second: float = Field(gt=0, le=1e9, description="rows per second that are to be served now, at the busiest")
    rows_per_month: float = Field(0.0, ge=0, le=1e16, description="rows served now in a month; 0 leaves out the break-even in months")
    monthly_growth: float = Field(0.0, ge=-0.5, le=1, description="share by which peak and rows grow each month: 0.03 is 3 %, compounding")
    horizon_months: int = Field(12, ge=1, le=120, description="months that costs and benefits are added up over, this one included")
    utilization: float = Field(0.7, ge=0.01, le=1, description="share of an instance's measured capacity that is planned for")
    min_instances: int = Field(1, ge=1, le=100_000, description="instances kept whatever the load, for redundancy")
    hours: float = Field(0.0, ge=0, le=1e6, description="hours of people's work, once")
    hourly_rate: float = Field(0.0, ge=0, le=1e6, description="money for one hour of people's work")
    one_off_cost: float = Field(0.0, ge=0, le=1e12, description="money for infrastructure that is bought or rented for it, once")
    monthly_cost: float = Field(
        0.0, ge=0, le=1e12, description="money per month to keep the optimized model: watching it, repeating the job"
    )
    quality_value: float = Field(
        0.0, ge=0, le=1e12, description="money per month for one point, 0.01, of the metric; a point lost costs as much"
    )


class Capacity(Frozen):
    """Rows per second that one instance serves at the latency target."""

    rows_per_second: Positive


class Speedup(Frozen):
    """Capacity after by capacity before, measured in pairs: noise that is common to both is not in it."""

    ratio: Positive


class Measured(Frozen):
    """What was measured of the original and of the optimized model."""

    before: Capacity
    after: Capacity | Speedup
    quality_change: Ordered = Field(
        Interval(estimate=0, low=0, high=0), description="points, of 0.01, of the metric by which the optimized model is better"
    )
    job_instance_hours: float = Field(0.0, ge=0, le=1e6, description="hours that the optimization took, on a machine like the measured one")


class Until(Frozen):
    """How much it takes until a cost is earned, with 95 % bounds; `high` None: it may be that it never is."""

    estimate: float
    low: float
    high: float | None


class Month(Frozen):
    """One month of the horizon; `month` counts from 1, which is now. Money is that month's, except for `cumulative_net`."""

    month: int
    rows_per_second: float
    instances_before: Interval
    instances_after: Interval
    saving: Interval
    cumulative_net: Interval


class Swing(Frozen):
    """The net benefit when one input alone is moved: a fifth less and more of what was told, to its bounds if it was measured."""

    name: str
    less: float
    more: float
    net_at_less: float
    net_at_more: float

    @property
    def width(self) -> float:
        return abs(self.net_at_more - self.net_at_less)


class Payoff(StrEnum):
    """Whether benefit exceeds cost within the horizon, by the bounds of the interval."""

    PAYS = "PAYS"
    OPEN = "OPEN"
    DOES_NOT_PAY = "DOES_NOT_PAY"


class Worth(Frozen):
    """What an optimization is worth over the horizon; money in `currency`. Costs follow from no measurement and have no interval."""

    currency: str
    capacity_before: Interval  # rows per second of one instance
    capacity_after: Interval
    months: tuple[Month, ...] = Field(min_length=1)
    one_time_cost: float
    total_cost: float
    total_benefit: Interval
    quality_benefit: Interval  # the part of it that is no saving of instances
    net_benefit: Interval
    roi: Interval | None  # None: nothing is spent
    payback_months: Until | None  # None: nothing is earned
    break_even_rows: Until | None  # that earn the one-time cost; None: a row costs no less
    break_even_months: Until | None  # until so many were served; None also without rows_per_month
    cost_per_million_rows_before: Interval
    cost_per_million_rows_after: Interval
    saves_from_rows_per_second: Interval | None  # None: it saves now, or at no load
    sensitivity: tuple[Swing, ...]  # widest first
    payoff: Payoff
    verdict: str
    left_out: tuple[str, ...]  # what is None above, a sentence each

    @property
    def now(self) -> Month:
        return self.months[0]

    @property
    def end(self) -> Month:
        return self.months[-1]

    @property
    def monthly_saving(self) -> Interval:
        """Now."""
        return self.now.saving

    @property
    def hangs_on(self) -> str:
        """The input that moves the net benefit most; "" when none does."""
        return self.sensitivity[0].name if self.sensitivity and self.sensitivity[0].width > 0 else ""
