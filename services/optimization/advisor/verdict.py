"""What an optimization is worth, in a few sentences with their figures."""

from collections.abc import Iterator

from services.optimization.advisor.economics import Month, Payoff, Until, Worth
from services.optimization.report import Interval

_HEADS = {Payoff.PAYS: "Pays", Payoff.OPEN: "Open whether it pays", Payoff.DOES_NOT_PAY: "Does not pay"}


def verdict(worth: Worth) -> str:
    return " ".join(_sentences(worth))


def _sentences(worth: Worth) -> Iterator[str]:
    yield _head(worth)
    yield _instances(worth)
    if worth.payback_months is not None and worth.total_cost:
        yield _payback(worth, worth.payback_months)
    if worth.hangs_on:
        yield _hangs_on(worth)


def _head(worth: Worth) -> str:
    benefit = _range(worth.total_benefit, f" {worth.currency}", "95 % interval ")
    of_quality = f", {_range(worth.quality_benefit)} of it by quality," if worth.quality_benefit.estimate else ""
    cost = f"{_number(worth.total_cost)} {worth.currency}"
    return f"{_HEADS[worth.payoff]}: over {_count(len(worth.months), 'month')} the benefit is {benefit}{of_quality} and the cost {cost}."


def _instances(worth: Worth) -> str:
    now, end = worth.now, worth.end
    if now.saving.estimate == 0:
        return _nothing_saved(worth)
    later = f"; in month {end.month}, {_change(end)}" if _change(end) != _change(now) else ""
    bill = "lower" if now.saving.estimate > 0 else "higher"
    return f"Now {_change(now)}, a bill {_range(_size(now.saving), f' {worth.currency}')} a month {bill}{later}."


def _size(saving: Interval) -> Interval:
    """Of a saving, or of a loss as what it costs."""
    if saving.estimate >= 0:
        return saving
    return Interval(estimate=-saving.estimate, low=-saving.high, high=-saving.low)


def _change(month: Month) -> str:
    return f"{_range(month.instances_before)} instances become {_range(month.instances_after)}"


def _nothing_saved(worth: Worth) -> str:
    needed = round(worth.now.instances_before.estimate)
    serve = "instance already serves" if needed == 1 else "instances already serve"
    told = f"{needed} {serve} {_number(worth.now.rows_per_second)} rows/s: no instance is saved now."
    if worth.saves_from_rows_per_second is None:
        return f"{told} An instance serves no more rows than before, so that none is saved at any load."
    first = next((month.month for month in worth.months if month.saving.estimate > 0), None)
    when = "more than the horizon brings" if first is None else f"reached in month {first}"
    return f"{told} Saving starts above {_range(worth.saves_from_rows_per_second)} rows/s, {when}."


def _payback(worth: Worth, payback: Until) -> str:
    high = "never" if payback.high is None else _number(payback.high)
    width = "" if payback.low == payback.high else f" ({_number(payback.low)} to {high})"
    late = ", past the horizon" if payback.estimate > len(worth.months) else ""
    roi = f"; ROI {_range(worth.roi)}" if worth.roi else ""
    return f"The cost is earned back in {_number(payback.estimate)} months{width}{late}{roi}."


def _hangs_on(worth: Worth) -> str:
    top = worth.sensitivity[0]
    less, more = (f"{_number(value)} {worth.currency}" for value in (top.net_at_less, top.net_at_more))
    name = top.name.replace("_", " ")
    return f"It hangs most on {name}: at {_number(top.less)} the net benefit is {less}, at {_number(top.more)} it is {more}."


def _range(interval: Interval, unit: str = "", what: str = "") -> str:
    estimate, low, high = (_number(value) for value in (interval.estimate, interval.low, interval.high))
    return f"{estimate}{unit}" if low == high else f"{estimate}{unit} ({what}{low} to {high})"


def _number(value: float) -> str:
    """Three digits, and every one before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value + 0.0:.3g}"  # a negative zero has lost its sign then


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
