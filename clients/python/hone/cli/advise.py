"""`hone advise`: from a goal to a measured recipe, and what it is worth."""

import math
from pathlib import Path
from typing import Annotated

import typer

from hone.cli import recommendation, recorded, show
from hone.cli.connection import client
from hone.cli.jobs import data, follow
from hone.cli.jobs import tell as tell
from hone.cli.prices import economics
from hone.optimization.v1 import goals_pb2
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
    metric: Annotated[str, typer.Option(help="accuracy, macro_f1, perplexity or fidelity. Default: the task's.")] = "",
    max_loss: Annotated[str, typer.Option(help="Largest loss of the metric: 1%, or 0.01.")] = "",
    min_examples: Annotated[int | None, typer.Option(help="Fewest evaluation examples for a verdict.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Lowest speed-up of the model itself.")] = None,
    min_served_speedup: Annotated[float | None, typer.Option(help="Lowest speed-up through the service.")] = None,
    max_size_mb: Annotated[float | None, typer.Option(help="Largest size of the version in MB.")] = None,
    max_memory_mb: Annotated[float | None, typer.Option(help="Most memory of a process that serves it, in MB.")] = None,
    max_p99_ms: Annotated[float | None, typer.Option(help="Longest that 99 of 100 calls may take.")] = None,
    at_rows_per_second: Annotated[float | None, typer.Option(help="The rate at which --max-p99-ms holds.")] = None,
    traffic: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Recorded requests, played instead of the examples: a JSON object a line with any of text (or tokens, or rows) and at: "
            '{"at": "2026-05-04T09:30:00.250Z", "text": "where is my parcel?"}. Lists for several rows; at may be seconds.',
        ),
    ] = None,
    rows_per_request: Annotated[int | None, typer.Option(help="Rows of one request, as your callers send them. Default: 1.")] = None,
    callers: Annotated[int, typer.Option(help="Callers that wait for their answers, where no rate is told.")] = 16,
    rate: Annotated[float, typer.Option(help="Requests per second; 0: as fast as they are answered, or as recorded.")] = 0,
    precisions_only: Annotated[
        bool, typer.Option("--precisions-only", help="Measure every precision that this machine has, and no more.")
    ] = False,
    price: Annotated[float, typer.Option(help="Of one hour of a machine that serves; with --peak, the recipe is priced.")] = 0,
    peak: Annotated[float, typer.Option(help="Rows per second to be served at the busiest.")] = 0,
    rows_per_month: Annotated[float, typer.Option(help="Rows served in a month.")] = 0,
    growth: Annotated[float, typer.Option(help="Of the traffic each month; 0.03 is 3 %.")] = 0,
    hours: Annotated[float, typer.Option(help="Of people's work, once.")] = 0,
    hourly_rate: Annotated[float, typer.Option(help="Of people's work.")] = 0,
    currency: Annotated[str, typer.Option(help="Of all money here. Default: USD.")] = "",
    economics_file: Annotated[
        Path | None,
        typer.Option(
            "--economics",
            exists=True,
            dir_okay=False,
            help="Prices and traffic as a JSON object, which the options above win over; also horizon_months, utilization, min_instances, "
            'one_off_cost, monthly_cost, quality_value: {"instance_hour_price": 0.4, "peak_rows_per_second": 200}.',
        ),
    ] = None,
    channel: Annotated[list[str] | None, typer.Option(help="A channel to point at the version; may be repeated. E.g. canary.")] = None,
    publish_as: Annotated[str, typer.Option(help="Publish under another model name.")] = "",
    budget: Annotated[str, typer.Option(help="Time for all of it: 20m, 1h, 600s; empty: the server's default.")] = "",
    cores: Annotated[int, typer.Option(help="Cores of the job; 0: the server's default.")] = 0,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be tried, and an estimate; create nothing.")] = False,
    detach: Annotated[bool, typer.Option(help="Print the job's id and return.")] = False,
) -> None:
    """Find the recipe that meets a goal, measure it, and publish it."""
    options: dict[str, str | float] = {
        "currency": currency,
        "instance_hour_price": price,
        "peak_rows_per_second": peak,
        "rows_per_month": rows_per_month,
        "monthly_growth": growth,
        "hours": hours,
        "hourly_rate": hourly_rate,
    }
    wanted = goal(
        scenario,
        max_loss=_share(max_loss),
        min_speedup=min_speedup,
        min_served_speedup=min_served_speedup,
        max_size_bytes=_bytes(max_size_mb, "--max-size-mb"),
        max_memory_bytes=_bytes(max_memory_mb, "--max-memory-mb"),
        max_p99_ms=max_p99_ms,
        at_rows_per_second=at_rows_per_second,
        traffic=_traffic(traffic, rows_per_request, callers, rate),
        economics=economics(economics_file, options),
        precisions_only=precisions_only,
    )
    spec = job_spec(
        source,
        evaluation=data(evaluation, label_column),
        training=data(training, label_column),
        calibration=data(calibration, label_column),
        metric=metric,
        min_examples=min_examples,
        goal=wanted,
        channels=channel or (),
        publish_as=publish_as,
        budget_seconds=_seconds(budget),
        cores=cores,
        seed=seed,
    )
    with client(context) as hone:
        if dry_run:
            show.console.print(recommendation.outline(hone.advisor.plan(spec)))
            return
        job = hone.advisor.recommend(spec)
        if detach:
            show.console.print(job.id)
            return
        follow(hone, job.id)
        tell(hone, hone.jobs.get(job.id))


def _traffic(file: Path | None, rows_per_request: int | None, callers: int, rate: float) -> goals_pb2.Traffic:
    found = recorded.traffic(file) if file else goals_pb2.Traffic(request_rows=[1])
    if file and rows_per_request is not None:
        raise typer.BadParameter(f"{file} tells how many rows each request has", param_hint="--rows-per-request")
    if rows_per_request is not None:
        found.request_rows[:] = [rows_per_request]
    found.callers, found.rate = callers, rate
    return found


def _share(told: str) -> float | None:
    """`1%` or `0.01`; None for nothing. Raises typer.BadParameter."""
    if not told:
        return None
    share = _number(told.removesuffix("%"), f"{told!r} is no share: 1%, or 0.01", "--max-loss")
    return share / 100 if told.endswith("%") else share


def _seconds(told: str) -> float:
    """`20m`, `1h`, `600s` or seconds; 0 for nothing. Raises typer.BadParameter."""
    if not told:
        return 0.0
    unit = {"s": 1, "m": 60, "h": 3600}.get(told[-1])
    seconds = _number(told[:-1] if unit else told, f"{told!r} is no time: 20m, 1h, 600s, or seconds", "--budget")
    return seconds * (unit or 1)


def _bytes(megabytes: float | None, option: str) -> int | None:
    return None if megabytes is None else int(1e6 * _number(str(megabytes), f"{megabytes} is no size", option))


def _number(told: str, otherwise: str, option: str) -> float:
    """Raises typer.BadParameter for what is none, or not finite."""
    try:
        number = float(told)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise typer.BadParameter(otherwise, param_hint=option)
    return number
