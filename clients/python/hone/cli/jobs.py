"""`hone optimize`, `hone techniques`, `hone jobs ls|watch|cancel|report`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from hone.cli import show
from hone.cli.connection import client
from hone.client import Client
from hone.optimization.v1 import jobs_pb2
from hone.specs import job_spec

app = typer.Typer(no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Adds the commands that are not under `jobs`."""
    root.command()(optimize)
    root.command()(techniques)


def optimize(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="The model to optimize: NAME, NAME@VERSION or NAME:CHANNEL.")],
    evaluation: Annotated[
        Path, typer.Option(help="Held-out texts that candidates are judged on, one a line.", exists=True, dir_okay=False)
    ],
    calibration: Annotated[
        Path | None, typer.Option(help="Texts for calibration, one a line, disjoint.", exists=True, dir_okay=False)
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="A candidate as its techniques, e.g. export_onnx,dynamic_int8; may be repeated. Default: the server's."),
    ] = None,
    min_fidelity: Annotated[float | None, typer.Option(help="Lowest fidelity to accept.")] = None,
    min_gain: Annotated[float | None, typer.Option(help="Lowest gain to accept, as a ratio.")] = None,
    objective: Annotated[str, typer.Option(help="throughput, latency or size.")] = "throughput",
    channel: Annotated[list[str] | None, typer.Option(help="A channel to point at the accepted version; may be repeated.")] = None,
    publish_as: Annotated[str, typer.Option(help="Publish under another model name.")] = "",
    detach: Annotated[bool, typer.Option(help="Print the job's id and return.")] = False,
) -> None:
    """Optimize a model in a job and publish the candidate that passes."""
    spec = job_spec(
        source,
        recipes={text.replace(",", "-"): text.split(",") for text in recipe or ()},
        evaluation_texts=_lines(evaluation),
        calibration_texts=_lines(calibration) if calibration else (),
        min_fidelity=min_fidelity,
        min_gain=min_gain,
        objective=objective,
        publish_as=publish_as,
        channels=channel or (),
    )
    with client(context) as hone:
        job = hone.jobs.create(spec)
        if detach:
            show.console.print(job.id)
            return
        follow(hone, job.id)
        _conclude(hone.jobs.get(job.id))


@app.command("ls")
def list_jobs(context: typer.Context) -> None:
    """List jobs, newest first."""
    with client(context) as hone:
        show.console.print(show.jobs(hone.jobs.list()))


@app.command()
def watch(context: typer.Context, job: str) -> None:
    """Show a job's progress until it ends."""
    with client(context) as hone:
        follow(hone, job)
        _conclude(hone.jobs.get(job))


@app.command()
def cancel(context: typer.Context, job: str) -> None:
    """Ask a job to end."""
    with client(context) as hone:
        show.console.print(show.state(hone.jobs.cancel(job)))


@app.command()
def report(context: typer.Context, job: str) -> None:
    """Show what a job measured."""
    with client(context) as hone:
        _conclude(hone.jobs.get(job))


def techniques(context: typer.Context) -> None:
    """List the techniques that the server knows."""
    with client(context) as hone:
        rows = [(t.name, ", ".join(t.source_formats), t.target_format, t.summary, t.hardware_note) for t in hone.jobs.techniques()]
    show.console.print(show.table("", ("technique", "from", "to", "what it does", "on this machine"), rows))


def follow(hone: Client, job_id: str) -> None:
    """A bar until the job has ended; log lines above it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=show.console) as bar:
        task = bar.add_task("queued", total=1.0)
        for event in hone.jobs.watch(job_id):
            bar.update(task, completed=event.fraction, description=event.stage or "working")
            if event.message:
                bar.console.print(f"[dim]{event.message}[/]", highlight=False)


def _conclude(job: jobs_pb2.Job) -> None:
    """Prints the report and the verdict; status 1 for a job that published nothing."""
    if job.HasField("report"):
        show.console.print(show.report(job.report))
        for candidate in job.report.candidates:
            show.console.print(f"{candidate.name}: {candidate.reason}", highlight=False)
    if job.HasField("failure"):
        show.console.print(f"failed: {job.failure.message}", highlight=False)
    show.console.print(f"{show.state(job)}{f', published {job.published}' if job.published else ''}")
    if job.state in (jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_REJECTED, jobs_pb2.JOB_STATE_CANCELLED):
        raise typer.Exit(1)


def _lines(path: Path) -> list[str]:
    """Distinct lines that are not empty, in order."""
    return list(dict.fromkeys(line.strip() for line in path.read_text().splitlines() if line.strip()))
