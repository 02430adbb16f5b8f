"""What an optimization is worth: its costs beside what it saves, at the estimates and within what was measured."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from services.optimization.advisor import draws, returns
from services.optimization.advisor.economics import Economics, Measured, Month, Payoff, Until, Worth
from services.optimization.advisor.fleet import loads
from services.optimization.advisor.outcome import Costs, Outcome, at_estimates, costs, outcome, samples
from services.optimization.advisor.swings import swings
from services.optimization.advisor.verdict import verdict
from services.optimization.report import Interval

_Figure = Callable[[Outcome], float]


def worth(economics: Economics, measured: Measured, *, seed: int = 0) -> Worth:
    """Estimates are the figures at the measurements' estimates; bounds are those of samples of the measurements, 95 %.

    Instances are whole, so that money moves in steps: a wider measurement widens the bounds of what follows from it alone, while of
    several a narrow step may be passed over.
    """
    spent = costs(economics, measured.job_instance_hours)
    found = _Outcomes(outcome(economics, spent, at_estimates(measured)), [outcome(economics, spent, at) for at in samples(measured, seed)])
    figures = {**_totals(economics, found, spent), **_rows(economics, found, spent)}
    result = Worth(
        currency=economics.currency,
        months=tuple(_months(economics, found)),
        sensitivity=swings(economics, measured),
        left_out=tuple(_left_out(economics, figures)),
        verdict="",
        **figures,
    )
    return result.model_copy(update={"verdict": verdict(result)})


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """At the estimates, and of every sample."""

    point: Outcome
    drawn: list[Outcome]

    def interval(self, figure: _Figure) -> Interval:
        estimate = float(figure(self.point))
        low, high = draws.bounds(estimate, [figure(one) for one in self.drawn])
        return Interval(estimate=estimate, low=low, high=high)

    def until(self, figure: _Figure) -> Until | None:
        """Infinity is never."""
        estimate = figure(self.point)
        if math.isinf(estimate):
            return None
        low, high = draws.bounds(estimate, [figure(one) for one in self.drawn])
        return Until(estimate=estimate, low=low, high=None if math.isinf(high) else high)


def _months(economics: Economics, found: _Outcomes) -> Iterator[Month]:
    peaks = loads(economics.peak_rows_per_second, economics.monthly_growth, economics.horizon_months)
    return (_month(index, peak, found) for index, peak in enumerate(peaks))


def _month(index: int, peak: float, found: _Outcomes) -> Month:
    return Month(
        month=index + 1,
        rows_per_second=peak,
        instances_before=found.interval(lambda one: one.instances_before[index]),
        instances_after=found.interval(lambda one: one.instances_after[index]),
        saving=found.interval(lambda one: one.savings[index]),
        cumulative_net=found.interval(lambda one: one.cumulative_nets[index]),
    )


def _totals(economics: Economics, found: _Outcomes, spent: Costs) -> dict[str, Any]:
    net, months = found.interval(lambda one: one.net), economics.horizon_months
    return {
        "one_time_cost": spent.one_time,
        "total_cost": spent.total,
        "total_benefit": found.interval(lambda one: one.benefit),
        "quality_benefit": found.interval(lambda one: one.quality_benefit),
        "net_benefit": net,
        "roi": _roi(found, spent),
        "payback_months": found.until(lambda one: returns.payback_months(one.benefit, spent.total, months)),
        "payoff": Payoff.PAYS if net.low > 0 else Payoff.DOES_NOT_PAY if net.high <= 0 else Payoff.OPEN,
    }


def _roi(found: _Outcomes, spent: Costs) -> Interval | None:
    def roi(one: Outcome) -> float:
        return returns.roi(one.benefit, spent.total)

    return found.interval(roi) if math.isfinite(roi(found.point)) else None


def _rows(economics: Economics, found: _Outcomes, spent: Costs) -> dict[str, Any]:
    def rows(one: Outcome) -> float:
        return returns.break_even_rows(spent.one_time, one.cost_per_row_before - one.cost_per_row_after)

    def months(one: Outcome) -> float:
        return returns.months_to_serve(rows(one), economics.rows_per_month, economics.monthly_growth)

    return {
        "capacity_before": found.interval(lambda one: one.sample.before),
        "capacity_after": found.interval(lambda one: one.sample.after),
        "break_even_rows": found.until(rows),
        "break_even_months": found.until(months) if economics.rows_per_month else None,
        "cost_per_million_rows_before": found.interval(lambda one: 1e6 * one.cost_per_row_before),
        "cost_per_million_rows_after": found.interval(lambda one: 1e6 * one.cost_per_row_after),
        "saves_from_rows_per_second": _saves_from(economics, found),
    }


def _saves_from(economics: Economics, found: _Outcomes) -> Interval | None:
    """Where both need as many instances now: past what those can serve of the original, it alone needs one more."""
    needed, sample = found.point.instances_before[0], found.point.sample
    if needed != found.point.instances_after[0] or sample.after <= sample.before:
        return None
    return found.interval(lambda one: needed * one.sample.before * economics.utilization)


def _left_out(economics: Economics, figures: dict[str, Any]) -> Iterator[str]:
    if figures["roi"] is None:
        yield "ROI: nothing is spent"
    if figures["payback_months"] is None:
        yield "payback: nothing is earned"
    if figures["break_even_rows"] is None:
        yield "break-even: a row costs no less than before"
    elif figures["break_even_months"] is None:
        told = "the traffic never adds up to so many rows" if economics.rows_per_month else "rows_per_month is not told"
        yield f"break-even in months: {told}"
