"""`hone advise`: from a goal to a measured recipe, and what it is worth."""

from typing import Annotated, Literal

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from hone.cli import show
from hone.cli.connection import client
from hone.cli.jobs import conclude, data, follow
from hone.client import Client
from hone.optimization.v1 import advisor_pb2, goals_pb2, jobs_pb2
from hone.specs import goal, job_spec


def register(root: typer.Typer) -> None:
    root.command()(advise)


def advise(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="The model: NAME, NAME@VERSION or NAME:CHANNEL.")],
    evaluation: Annotated[str, typer.Option(help="Held-out examples that recipes are judged on: a dataset, or a file of one text a line.")],
    training: Annotated[str, typer.Option(help="Examples to train smaller models on, disjoint: a dataset or a file of texts.")] = "",
    calibration: Annotated[str, typer.Option(help="Examples for calibration, disjoint. Default: some of the training examples.")] = "",
    label_column: Annotated[str, typer.Option(help="The datasets' column that holds the label. Default: label.")] = "",
    scenario: Annotated[str, typer.Option(help="latency, throughput or resource: presets that the options below win over.")] = "throughput",
    max_loss: Annotated[str, typer.Option(help="Largest loss of the metric: 1%, or 0.01.")] = "",
    min_speedup: Annotated[float | None, typer.Option(help="Lowest speed-up of the model itself.")] = None,
    min_served_speedup: Annotated[float | None, typer.Option(help="Lowest speed-up through the service.")] = None,
    max_size_mb: Annotated[float | None, typer.Option(help="Largest size of the version in MB.")] = None,
    max_memory_mb: Annotated[float | None, typer.Option(help="Most memory of a process that serves it, in MB.")] = None,
    max_p99_ms: Annotated[float | None, typer.Option(help="Longest that 99 of 100 calls may take.")] = None,
    at_rows_per_second: Annotated[float | None, typer.Option(help="The rate at which --max-p99-ms holds.")] = None,
    rows_per_request: Annotated[int, typer.Option(help="Rows of one request, as your callers send them.")] = 1,
    callers: Annotated[int, typer.Option(help="Callers that wait for their answers, where no rate is told.")] = 16,
    rate: Annotated[float, typer.Option(help="Requests per second; 0: as fast as they are answered.")] = 0,
    precisions_only: Annotated[
        bool, typer.Option("--precisions-only", help="Measure every precision that this machine has, and no more.")
    ] = False,
    price: Annotated[float, typer.Option(help="Of one hour of a machine that serves; with --peak, the recipe is priced.")] = 0,
    peak: Annotated[float, typer.Option(help="Rows per second to be served at the busiest.")] = 0,
    rows_per_month: Annotated[float, typer.Option(help="Rows served in a month.")] = 0,
    growth: Annotated[float, typer.Option(help="Of the traffic each month; 0.03 is 3 %.")] = 0,
    hours: Annotated[float, typer.Option(help="Of people's work, once.")] = 0,
    hourly_rate: Annotated[float, typer.Option(help="Of people's work.")] = 0,
    currency: Annotated[str, typer.Option(help="Of all money here.")] = "USD",
    channel: Annotated[list[str] | None, typer.Option(help="A channel to point at the version; may be repeated. E.g. canary.")] = None,
    publish_as: Annotated[str, typer.Option(help="Publish under another model name.")] = "",
    budget: Annotated[str, typer.Option(help="Time for all of it: 20m, 1h, 600s; empty: the server's default.")] = "",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be tried, and an estimate; create nothing.")] = False,
    detach: Annotated[bool, typer.Option(help="Print the job's id and return.")] = False,
) -> None:
    """Find the recipe that meets a goal, measure it, and publish it."""
    priced = goals_pb2.Economics(
        currency=currency,
        instance_hour_price=price,
        peak_rows_per_second=peak,
        rows_per_month=rows_per_month,
        monthly_growth=growth,
        hours=hours,
        hourly_rate=hourly_rate,
    )
    wanted = goal(
        scenario,
        max_loss=_share(max_loss),
        min_speedup=min_speedup,
        min_served_speedup=min_served_speedup,
        max_size_bytes=None if max_size_mb is None else int(max_size_mb * 1e6),
        max_memory_bytes=None if max_memory_mb is None else int(max_memory_mb * 1e6),
        max_p99_ms=max_p99_ms,
        at_rows_per_second=at_rows_per_second,
        traffic=goals_pb2.Traffic(request_rows=[rows_per_request], callers=callers, rate=rate),
        economics=priced if price or peak else None,
        precisions_only=precisions_only,
    )
    spec = job_spec(
        source,
        evaluation=data(evaluation, label_column),
        training=data(training, label_column),
        calibration=data(calibration, label_column),
        goal=wanted,
        channels=channel or (),
        publish_as=publish_as,
        budget_seconds=_seconds(budget),
        seed=seed,
    )
    with client(context) as hone:
        if dry_run:
            show.console.print(_outline(hone.advisor.plan(spec)))
            return
        job = hone.advisor.recommend(spec)
        if detach:
            show.console.print(job.id)
            return
        follow(hone, job.id)
        tell(hone, hone.jobs.get(job.id))


def tell(hone: Client, job: jobs_pb2.Job) -> None:
    """The search, then the report."""
    if job.HasField("report"):
        found = hone.advisor.get(job.id)
        show.console.print(_trials(found))
        reached = "" if found.is_target_met else "; the goal was not met"
        show.console.print(f"{found.stopped_because}{reached}", highlight=False, markup=False)
        if found.HasField("serving"):
            show.console.print(_serving(found.serving))
            settings = ", ".join(f"{name}={value}" for name, value in found.serving.settings.items()) or "the defaults"
            show.console.print(f"served with {settings}", highlight=False, markup=False)
        for line in found.missed:
            show.console.print(f"missed: {line}", highlight=False, markup=False)
        if found.serving_note:
            show.console.print(found.serving_note, highlight=False, markup=False)
        if found.HasField("worth"):
            show.console.print(found.worth.verdict, highlight=False, markup=False)
    conclude(job)


def _outline(found: advisor_pb2.PlanRecommendationResponse) -> Group:
    rows = [
        (t.name, f"{t.expected_speedup:.1f}x", f"{t.expected_size_ratio:.1f}x", f"{t.chance:.0%}", f"{t.estimated_seconds:.0f} s", t.basis)
        for t in found.trials
    ]
    columns = ("recipe", "expected\nspeed-up", "smaller", "chance to\nmeet the goal", "estimate", "expected by")
    return Group(
        show.table("what would be tried, the best chance for its time first", columns, rows),
        f"at most {found.longest_seconds:.0f} s if all were tried; the budget is {found.budget_seconds:.0f} s",
        *(f"[yellow]{escape(line)}[/]" for line in found.notes),
    )


def _trials(found: advisor_pb2.Recommendation) -> Table:
    columns = ("recipe", "expected", "speed-up", "smaller", "loss", "took", "what came of it")
    return show.table("what was tried, in short runs", columns, [_trial(trial) for trial in found.trials])


def _trial(trial: advisor_pb2.Trial) -> tuple[str, ...]:
    measured = trial.HasField("speedup")
    return (
        trial.name,
        f"{trial.expected_speedup:.1f}x",
        show.interval(trial.speedup, 2) if measured else "",
        f"{trial.size_ratio:.1f}x" if measured else "",
        show.interval(trial.loss, 4) if trial.HasField("loss") else "",
        f"{trial.seconds:.0f} s",
        "shape alone" if trial.is_shape and measured else "accepted" if trial.accepted else trial.reason,
    )


def _serving(found: advisor_pb2.Serving) -> Table:
    rows = [
        (name, show.interval(served.rows_per_second, 0), _ms(served, "p50_ms"), _ms(served, "p99_ms"), f"{served.cpu_ms_per_row:.2f}")
        for name, served in (
            ("original", found.original),
            ("chosen, default settings", found.chosen_with_defaults),
            ("chosen, its own settings", found.chosen),
        )
    ]
    title = f"through the service: {show.interval(found.speedup, 2)} times the original's throughput"
    return show.table(title, ("", "rows/s", "p50 ms", "p99 ms", "CPU ms/row"), rows)


def _ms(served: advisor_pb2.Served, name: Literal["p50_ms", "p99_ms"]) -> str:
    return f"{getattr(served, name):.1f}" if served.HasField(name) else "unanswered"


def _share(told: str) -> float | None:
    """`1%` or `0.01`; None for nothing. Raises ValueError."""
    if not told:
        return None
    return float(told.removesuffix("%")) / 100 if told.endswith("%") else float(told)


def _seconds(told: str) -> float:
    """`20m`, `1h`, `600s` or seconds; 0 for nothing. Raises ValueError."""
    if not told:
        return 0.0
    unit = {"s": 1, "m": 60, "h": 3600}.get(told[-1])
    return float(told[:-1]) * unit if unit else float(told)
