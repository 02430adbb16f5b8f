"""`hone worth`: what a recommendation is worth, with these prices or with others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from hone.cli import show
from hone.cli.connection import client
from hone.cli.prices import economics
from hone.optimization.v1 import advisor_pb2 as pb
from hone.optimization.v1 import jobs_pb2

MOST_SWINGS = 5


def register(root: typer.Typer) -> None:
    root.command()(worth)


def worth(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="An ended `hone advise`.")],
    file: Annotated[
        Path | None,
        typer.Option("--economics", exists=True, dir_okay=False, help="What wins over the job's own, as in `hone advise --economics`."),
    ] = None,
    price: Annotated[float, typer.Option(help="Of one hour of a machine that serves.")] = 0,
    peak: Annotated[float, typer.Option(help="Rows per second to be served at the busiest.")] = 0,
    rows_per_month: Annotated[float, typer.Option(help="Rows served in a month.")] = 0,
    growth: Annotated[float, typer.Option(help="Of the traffic each month; 0.03 is 3 %.")] = 0,
) -> None:
    """Print what a recommendation is worth; what the job was told stands where nothing else is."""
    options: dict[str, str | float] = {
        "instance_hour_price": price,
        "peak_rows_per_second": peak,
        "rows_per_month": rows_per_month,
        "monthly_growth": growth,
    }
    with client(context) as hone:
        goal = hone.advisor.get(job).goal
        told = economics(file, options, goal.economics if goal.HasField("economics") else None)
        if told is None:
            raise ValueError("the job was told no prices: name --price and --peak, or an --economics FILE")
        show.console.print(tables(hone.advisor.worth(job, told)))


def tables(found: pb.Worth) -> Group:
    """The verdict, what it is made of, and what it hangs on."""
    return Group(
        escape(found.verdict),
        show.table(f"over {len(found.months)} months, money in {found.currency}", ("", "estimate", "95 % interval"), list(_rows(found))),
        _swings(found),
        *(f"[dim]left out: {escape(line)}[/]" for line in found.left_out),
    )


def _rows(found: pb.Worth) -> Iterator[tuple[str, str, str]]:
    now, end = found.months[0], found.months[-1]
    yield _row("rows/s of one instance, before", found.capacity_before)
    yield _row("rows/s of one instance, after", found.capacity_after)
    for month in (now, end) if end.month != now.month else (now,):
        yield _row(f"instances in month {month.month}, before", month.instances_before)
        yield _row(f"instances in month {month.month}, after", month.instances_after)
        yield _row(f"saving in month {month.month}", month.saving)
    yield "cost, once", number(found.one_time_cost), ""
    yield "cost in all", number(found.total_cost), ""
    yield _row("benefit in all", found.total_benefit)
    yield _row("of it by quality", found.quality_benefit)
    yield _row("net benefit", found.net_benefit)
    if found.HasField("roi"):
        yield _row("ROI", found.roi)
    for name, until in (
        ("payback in months", found.payback_months if found.HasField("payback_months") else None),
        ("break-even in rows", found.break_even_rows if found.HasField("break_even_rows") else None),
        ("break-even in months", found.break_even_months if found.HasField("break_even_months") else None),
    ):
        if until is not None:
            yield name, number(until.estimate), f"{number(until.low)} to {number(until.high) if until.HasField('high') else 'never'}"
    yield _row("a million rows cost, before", found.cost_per_million_rows_before)
    yield _row("a million rows cost, after", found.cost_per_million_rows_after)
    if found.HasField("saves_from_rows_per_second"):
        yield _row("saves from so many rows/s", found.saves_from_rows_per_second)


def _row(name: str, found: jobs_pb2.Interval) -> tuple[str, str, str]:
    exact = found.low == found.high
    return name, number(found.estimate), "" if exact else f"{number(found.low)} to {number(found.high)}"


def _swings(found: pb.Worth) -> Table:
    rows = [
        (swing.name, f"{number(swing.less)} to {number(swing.more)}", f"{number(swing.net_at_less)} to {number(swing.net_at_more)}")
        for swing in found.sensitivity[:MOST_SWINGS]
    ]
    return show.table("what it hangs on most", ("moved alone", "from … to", "net benefit then"), rows)


def number(value: float) -> str:
    """Three digits, and every one before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
