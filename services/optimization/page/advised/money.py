"""What the recommendation is worth, as pairs of a name and a figure."""

from collections.abc import Iterator

from services.optimization.advisor.economics import Swing, Worth
from services.optimization.page.advised import words
from services.optimization.report import Interval

MAX_SWINGS = 8
# An input's field as its reader knows it.
INPUTS = {
    "instance_hour_price": "price of an instance-hour",
    "peak_rows_per_second": "rows a second at the peak",
    "rows_per_month": "rows a month",
    "monthly_growth": "growth of traffic a month",
    "horizon_months": "months that are counted",
    "utilization": "share of an instance used",
    "min_instances": "instances kept in any case",
    "hours": "hours of work",
    "hourly_rate": "price of an hour of work",
    "one_off_cost": "one-off cost",
    "monthly_cost": "cost a month",
    "quality_value": "value of a point a month",
    "job_instance_hours": "hours of the optimization",
    "rows_per_second_before": "rows a second, before",
    "rows_per_second_after": "rows a second, after",
    "speedup": "measured speed-up",
    "quality_change": "measured change of quality",
}


def pairs(worth: Worth) -> tuple[tuple[str, str], ...]:
    return tuple(_pairs(worth))


def _pairs(worth: Worth) -> Iterator[tuple[str, str]]:
    months, currency = len(worth.months), worth.currency
    yield "rows a second of one instance", _change(worth.capacity_before, worth.capacity_after)
    for month in dict.fromkeys((worth.now.month, worth.end.month)):
        found = worth.months[month - 1]
        when = "now" if month == 1 else f"in month {month}"
        yield f"instances {when}", f"{words.span(found.instances_before, words.count)} → {words.span(found.instances_after, words.count)}"
        yield f"saved {when}", f"{_money(found.saving, currency)} a month"
    yield "cost per million rows", f"{_change(worth.cost_per_million_rows_before, worth.cost_per_million_rows_after)} {currency}"
    yield "cost, once", f"{words.amount(worth.one_time_cost)} {currency}"
    yield f"cost over {months} months", f"{words.amount(worth.total_cost)} {currency}"
    yield f"benefit over {months} months", _money(worth.total_benefit, currency)
    if worth.quality_benefit.estimate:
        yield "of it by quality", _money(worth.quality_benefit, currency)
    yield f"net benefit over {months} months", _money(worth.net_benefit, currency)
    if worth.roi is not None:
        yield "ROI, (benefit − cost) / cost", words.span(worth.roi)
    yield from _until(worth)


def _until(worth: Worth) -> Iterator[tuple[str, str]]:
    """What is absent is among `left_out`."""
    if worth.payback_months is not None:
        yield "paid back", f"in {words.until(worth.payback_months)} months"
    if worth.break_even_rows is not None:
        yield "break-even", f"after {words.until(worth.break_even_rows, words.many)} rows"
    if worth.break_even_months is not None:
        yield "break-even at the told traffic", f"after {words.until(worth.break_even_months)} months"
    if worth.saves_from_rows_per_second is not None:
        yield "instances are saved from", f"{words.span(worth.saves_from_rows_per_second)} rows a second on"


def _change(before: Interval, after: Interval) -> str:
    return f"{words.span(before)} → {words.span(after)}"


def _money(found: Interval, currency: str) -> str:
    return f"{words.span(found, words.amount)} {currency}"


def input_name(swing: Swing) -> str:
    return INPUTS.get(swing.name, swing.name)


def swings(worth: Worth) -> tuple[Swing, ...]:
    """Those that move the net benefit, widest first."""
    return tuple(swing for swing in worth.sensitivity if swing.width > 0)[:MAX_SWINGS]


def decisive(worth: Worth) -> Swing | None:
    """The first input that, moved alone, turns a gain into a loss or a loss into a gain."""
    return next((swing for swing in worth.sensitivity if (swing.net_at_less > 0) != (swing.net_at_more > 0)), None)
