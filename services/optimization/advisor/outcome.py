"""One sample of what was measured, and what it is worth month by month."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from services.optimization.advisor import draws, fleet
from services.optimization.advisor.economics import Economics, Measured, Speedup
from services.optimization.report import Interval


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows per second of one instance, and points of the metric gained."""

    before: float
    after: float
    points: float


def at_estimates(measured: Measured) -> Sample:
    gain, is_ratio = _gain(measured)
    before = measured.before.rows_per_second.estimate
    return Sample(before, before * gain.estimate if is_ratio else gain.estimate, measured.quality_change.estimate)


def samples(measured: Measured, seed: int) -> Iterator[Sample]:
    """Capacities are normal on the log scale, as ratios of times are; the quality is normal. Equal scores for equal seeds."""
    before, quality = measured.before.rows_per_second, measured.quality_change
    gain, is_ratio = _gain(measured)
    for before_score, gain_score, quality_score in draws.scores(3, seed):
        rows = draws.ratio_at(before.low, before.high, before_score)
        gained = draws.ratio_at(gain.low, gain.high, gain_score)
        yield Sample(rows, rows * gained if is_ratio else gained, draws.at(quality.low, quality.high, quality_score))


def _gain(measured: Measured) -> tuple[Interval, bool]:
    """What tells the capacity after, and whether it is a ratio to the one before."""
    if isinstance(measured.after, Speedup):
        return measured.after.ratio, True
    return measured.after.rows_per_second, False


@dataclass(frozen=True, slots=True)
class Costs:
    """What is spent, whatever was measured."""

    one_time: float
    monthly: float
    total: float  # over the horizon


def costs(economics: Economics, job_instance_hours: float) -> Costs:
    one_time = economics.hours * economics.hourly_rate + economics.one_off_cost + job_instance_hours * economics.instance_hour_price
    return Costs(one_time, economics.monthly_cost, one_time + economics.monthly_cost * economics.horizon_months)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one sample. Lists have one entry per month of the horizon."""

    sample: Sample
    instances_before: list[int]
    instances_after: list[int]
    savings: list[float]
    cumulative_nets: list[float]
    benefit: float
    quality_benefit: float  # the part of it that is no saving
    net: float
    cost_per_row_before: float
    cost_per_row_after: float


def outcome(economics: Economics, spent: Costs, sample: Sample) -> Outcome:
    before, after = (rows * economics.utilization for rows in (sample.before, sample.after))
    loads = fleet.loads(economics.peak_rows_per_second, economics.monthly_growth, economics.horizon_months)
    needed_before, needed_after = ([fleet.instances(load, rows, economics.min_instances) for load in loads] for rows in (before, after))
    month_price = economics.instance_hour_price * fleet.HOURS_PER_MONTH
    savings = [(old - new) * month_price for old, new in zip(needed_before, needed_after, strict=True)]
    quality = sample.points * economics.quality_value
    nets = list(accumulate((saving + quality - spent.monthly for saving in savings), initial=-spent.one_time))[1:]
    quality_benefit = quality * len(savings)
    benefit = sum(savings) + quality_benefit
    return Outcome(
        sample,
        needed_before,
        needed_after,
        savings,
        nets,
        benefit,
        quality_benefit,
        benefit - spent.total,
        fleet.cost_per_row(economics.instance_hour_price, before),
        fleet.cost_per_row(economics.instance_hour_price, after),
    )
