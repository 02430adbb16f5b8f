"""Answers as tables for a terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from hone.inference.v1 import inference_pb2
from hone.optimization.v1 import jobs_pb2
from hone.repository.v1 import models_pb2

console = Console()
VERDICTS = {
    jobs_pb2.VERDICT_ACCEPT: "[green]accepted[/]",
    jobs_pb2.VERDICT_REJECT_ACCURACY: "[red]rejected:\naccuracy[/]",
    jobs_pb2.VERDICT_REJECT_NO_GAIN: "[red]rejected:\nno gain[/]",
    jobs_pb2.VERDICT_INCONCLUSIVE: "[yellow]inconclusive[/]",
    jobs_pb2.VERDICT_INFEASIBLE: "[yellow]infeasible[/]",
}


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, whole: bool = False) -> Table:
    """The first column to the left, figures to the right. `whole`: the first column is never cut, however narrow the terminal."""
    made = Table(title=title, title_justify="left", header_style="bold")
    rows = list(rows)
    longest = max((len(row[0]) for row in rows), default=0)
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", min_width=longest if whole and index == 0 else None)
    for row in rows:
        made.add_row(*row)
    return made


def megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def state(job: jobs_pb2.Job) -> str:
    return jobs_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()


def versions(models: Iterable[models_pb2.ModelVersion]) -> Table:
    rows = [
        (
            f"{model.name}@{model.version}",
            models_pb2.Task.Name(model.task).removeprefix("TASK_").lower(),
            models_pb2.Format.Name(model.format).removeprefix("FORMAT_").lower(),
            megabytes(model.size_bytes),
            model.parent or "upload",
            ", ".join(model.channels),
        )
        for model in models
    ]
    return table("", ("model", "task", "format", "size", "made from", "channels"), rows, whole=True)


def jobs(found: Iterable[jobs_pb2.Job]) -> Table:
    rows = [(job.id, state(job), job.spec.source, job.published, job.created.ToDatetime().isoformat(" ", "seconds")) for job in found]
    return table("", ("job", "state", "source", "published", "created (UTC)"), rows, whole=True)


def report(found: jobs_pb2.Report) -> Table:
    """One column for the original and each candidate: size, quality, verdict, then latency and throughput at every workload."""
    measured = [found.original, *(candidate.measurement for candidate in found.candidates)]
    names = ["original", *(f"{c.name} ←" if c.name == found.chosen else c.name for c in found.candidates)]
    compared = [None, *found.candidates]
    rows = [
        ("size", *map(_size, measured)),
        ("memory", *(megabytes(m.memory_bytes) if m.memory_bytes else "" for m in measured)),
        *(_quality_row(number, found.candidates) for number in dict.fromkeys(q.metric for c in found.candidates for q in c.qualities)),
        ("fidelity,\n95 % interval", *("1" if c is None else interval(c.fidelity, 4) if c.HasField("fidelity") else "" for c in compared)),
        ("speed-up,\n95 % interval", *("1" if c is None else interval(c.speedup, 2) if c.HasField("speedup") else "" for c in compared)),
        ("verdict", *("" if c is None else VERDICTS.get(c.verdict, "") for c in compared)),
    ]
    for index, workload in enumerate(found.original.workloads):
        shape = f"{workload.batch_rows} × {workload.tokens}" if workload.tokens else f"{workload.batch_rows} rows"
        rows.append((f"{shape}\n", *(_speed(m, index) for m in measured)))
    title = "Candidates beside the original, measured in turns.\nRows × tokens: p50 / p99 in ms, rows per second."
    return table(title, ("", *names), rows)


def _quality_row(metric: "jobs_pb2.Metric.ValueType", candidates: Sequence[jobs_pb2.Candidate]) -> tuple[str, ...]:
    """The original's figure, then each candidate's with the interval of its difference."""
    found = [next((q for q in c.qualities if q.metric == metric), None) for c in candidates]
    original = next(q for q in found if q is not None)
    name = jobs_pb2.Metric.Name(metric).removeprefix("METRIC_").lower().replace("_", " ")
    cells = ["" if q is None else f"{q.candidate.estimate:.4f}\n{_difference(q.metric, q.difference)}" for q in found]
    return (f"{name},\ndifference", f"{original.original.estimate:.4f}", *cells)


def _difference(metric: "jobs_pb2.Metric.ValueType", found: jobs_pb2.Interval) -> str:
    """A perplexity's is a share of the original's."""
    form = "+.2%" if metric == jobs_pb2.METRIC_PERPLEXITY else "+.4f"
    return f"{found.low:{form}} to {found.high:{form}}"


def plan(found: jobs_pb2.PlanJobResponse) -> Group:
    """Recipes as their steps with estimates, then what will most likely disappoint."""
    rows = [
        (recipe.name if index == 0 else "", step.technique, f"{step.source_format} -> {step.target_format}", _seconds(step), step.basis)
        for recipe in found.recipes
        for index, step in enumerate(recipe.steps)
    ]
    rows.append(("all", "comparing and measuring", "", f"{found.evaluation_seconds:.0f} s", ""))
    rows.append(("in all", "", "", f"{found.total_seconds:.0f} s", ""))
    return Group(
        table("", ("recipe", "step", "format", "estimate", "basis"), rows), *(f"[yellow]{escape(line)}[/]" for line in found.warnings)
    )


def _seconds(step: jobs_pb2.PlannedStep) -> str:
    return f"{step.estimated_seconds:.0f} s"


def _size(measurement: jobs_pb2.Measurement) -> str:
    return megabytes(measurement.size_bytes) if measurement.size_bytes else ""


def _speed(measurement: jobs_pb2.Measurement, index: int) -> str:
    if index >= len(measurement.workloads):  # infeasible: nothing was measured
        return ""
    workload = measurement.workloads[index]
    return f"{workload.p50_ms:.1f} / {workload.p99_ms:.1f}\n{workload.rows_per_second:.0f}/s"


def interval(interval: jobs_pb2.Interval, digits: int) -> str:
    return f"{interval.estimate:.{digits}f}\n{interval.low:.{digits}f}–{interval.high:.{digits}f}"


def serving(models: inference_pb2.ListModelsResponse, statistics: inference_pb2.GetStatisticsResponse) -> Table:
    counted = {(entry.name, entry.version): entry for entry in statistics.models}
    rows = []
    for model in models.models:
        entry = counted.get((model.name, model.version), inference_pb2.ModelStatistics())
        padding = 1 - entry.real_tokens / entry.padded_tokens if entry.padded_tokens else 0.0
        rows.append(
            (
                f"{model.name}@{model.version}",
                inference_pb2.LoadState.Name(model.state).removeprefix("LOAD_STATE_").lower(),
                ", ".join(model.channels),
                model.backend,
                str(entry.rows),
                f"{entry.batch_rows / entry.batches:.1f}" if entry.batches else "",
                f"{padding:.0%}",
                f"{entry.cached_rows / entry.rows:.0%}" if entry.rows else "",
            )
        )
    columns = ("model", "state", "channels", "backend", "rows", "rows/batch", "padding", "cached")
    return table(f"replica {models.replica}", columns, rows)
