"""`hone optimize`, `hone techniques`, `hone jobs ls|watch|cancel|report`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from hone.cli import recommendation, show
from hone.cli import report as pages
from hone.cli.connection import client
from hone.client import Client
from hone.optimization.v1 import jobs_pb2
from hone.specs import StepLike, job_spec

app = typer.Typer(no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Adds the commands that are not under `jobs`."""
    root.command()(optimize)
    root.command()(techniques)


def optimize(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="The model to optimize: NAME, NAME@VERSION or NAME:CHANNEL.")],
    evaluation: Annotated[
        str, typer.Option(help="Held-out examples that candidates are judged on: a dataset, or a file of one text a line.")
    ],
    calibration: Annotated[str, typer.Option(help="Examples for calibration, disjoint: a dataset or a file of texts.")] = "",
    training: Annotated[str, typer.Option(help="Examples for techniques that train, disjoint: a dataset or a file of texts.")] = "",
    teacher: Annotated[str, typer.Option(help="The model that training learns from. Default: the source.")] = "",
    label_column: Annotated[str, typer.Option(help="The datasets' column that holds the label. Default: label.")] = "",
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="A candidate as its techniques, e.g. export_onnx,dynamic_int8; may be repeated. Default: the server's."),
    ] = None,
    recipes: Annotated[
        Path | None,
        typer.Option(help='Candidates with parameters, JSON: {"small": [["distill", {"layers": 3}], "export_onnx"]}.', exists=True),
    ] = None,
    metric: Annotated[str, typer.Option(help="accuracy, macro_f1, perplexity or fidelity. Default: the task's.")] = "",
    min_fidelity: Annotated[float | None, typer.Option(help="Lowest fidelity to accept.")] = None,
    max_loss: Annotated[float | None, typer.Option(help="Largest loss of the metric to accept; 0.01 is one point.")] = None,
    min_gain: Annotated[float | None, typer.Option(help="Lowest gain to accept, as a ratio.")] = None,
    min_examples: Annotated[int | None, typer.Option(help="Fewest evaluation examples for a verdict.")] = None,
    objective: Annotated[str, typer.Option(help="throughput, latency or size.")] = "throughput",
    channel: Annotated[list[str] | None, typer.Option(help="A channel to point at the accepted version; may be repeated.")] = None,
    publish_as: Annotated[str, typer.Option(help="Publish under another model name.")] = "",
    budget: Annotated[float, typer.Option(help="Seconds that the job may take; 0: the server's limit.")] = 0,
    cores: Annotated[int, typer.Option(help="Cores of the job; 0: the server's default.")] = 0,
    memory_gb: Annotated[float, typer.Option(help="Memory of the job in GB; 0: the server's default.")] = 0,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and an estimate; create nothing.")] = False,
    detach: Annotated[bool, typer.Option(help="Print the job's id and return.")] = False,
) -> None:
    """Optimize a model in a job and publish the candidate that passes."""
    spec = job_spec(
        source,
        recipes=_recipes(recipe or (), recipes),
        evaluation=data(evaluation, label_column),
        calibration=data(calibration, label_column),
        training=data(training, label_column),
        metric=metric,
        min_fidelity=min_fidelity,
        max_loss=max_loss,
        min_gain=min_gain,
        min_examples=min_examples,
        objective=objective,
        publish_as=publish_as,
        channels=channel or (),
        budget_seconds=budget,
        cores=cores,
        memory_bytes=int(memory_gb * 1e9),
        seed=seed,
        teacher=teacher,
    )
    with client(context) as hone:
        if dry_run:
            show.console.print(show.plan(hone.jobs.plan(spec)))
            return
        job = hone.jobs.create(spec)
        if detach:
            show.console.print(job.id)
            return
        follow(hone, job.id)
        conclude(hone.jobs.get(job.id))


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
        tell(hone, hone.jobs.get(job))


@app.command()
def cancel(context: typer.Context, job: str) -> None:
    """Ask a job to end."""
    with client(context) as hone:
        show.console.print(show.state(hone.jobs.cancel(job)))


@app.command()
def report(
    context: typer.Context,
    job: str,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page with plots that opens without a network.")] = None,
) -> None:
    """Show what a job measured."""
    with client(context) as hone:
        if html is not None:
            pages.write(hone, job, html)
            return
        tell(hone, hone.jobs.get(job))


def techniques(context: typer.Context) -> None:
    """List the techniques that the server knows."""
    with client(context) as hone:
        rows = [
            (t.name, t.family, ", ".join(t.source_formats), t.target_format or "the same", t.summary, t.unavailable or t.hardware_note)
            for t in hone.jobs.techniques()
        ]
    show.console.print(show.table("", ("technique", "family", "from", "to", "what it does", "on this machine"), rows))


def follow(hone: Client, job_id: str) -> None:
    """A bar until the job has ended; log lines above it. Ctrl-C ends the watching alone, and says so."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=show.console) as bar:
            task = bar.add_task("queued", total=1.0)
            for event in hone.jobs.watch(job_id):
                loss = f", loss {event.metrics['loss']:.4g}" if "loss" in event.metrics else ""
                bar.update(task, completed=event.fraction, description=f"{event.stage or 'working'}{loss}")
                if event.message:
                    bar.console.print(f"[dim]{escape(event.message)}[/]", highlight=False)
    except KeyboardInterrupt:
        ways = f"`hone jobs watch {job_id}` shows it, `hone jobs cancel {job_id}` ends it"
        show.console.print(f"the job goes on: {ways}", highlight=False, soft_wrap=True)
        raise


def tell(hone: Client, job: jobs_pb2.Job) -> None:
    """What a search found before what was measured of it; then as `conclude`."""
    if job.HasField("report") and job.spec.HasField("goal"):
        recommendation.tell(hone.advisor.get(job.id))
    conclude(job)


def conclude(job: jobs_pb2.Job) -> None:
    """Prints the report and the verdict; status 1 for a job that published nothing."""
    if job.HasField("report"):
        show.console.print(show.report(job.report))
        for candidate in job.report.candidates:
            show.console.print(f"{candidate.name}: {candidate.reason}", highlight=False, markup=False)
    if job.HasField("failure"):
        show.console.print(f"failed: {job.failure.message}", highlight=False, markup=False)
    show.console.print(f"{show.state(job)}{f', published {job.published}' if job.published else ''}")
    if job.state in (jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_REJECTED, jobs_pb2.JOB_STATE_CANCELLED):
        raise typer.Exit(1)


def _recipes(lists: Sequence[str], path: Path | None) -> dict[str, Sequence[StepLike]]:
    """Raises ValueError for a file that holds something else."""
    found: dict[str, Sequence[StepLike]] = {text.replace(",", "-"): text.split(",") for text in lists}
    content = json.loads(path.read_text()) if path else {}
    if not isinstance(content, dict) or not all(isinstance(steps, list) for steps in content.values()):
        raise ValueError(f"{path}: must be an object of lists of steps")
    return found | {name: [_step(step, f"{path}: {name}[{index}]") for index, step in enumerate(steps)] for name, steps in content.items()}


def _step(told: object, place: str) -> StepLike:
    match told:
        case str():
            return told
        case [str(technique), dict(parameters)]:
            return technique, parameters
    raise ValueError(f'{place}: must be "TECHNIQUE" or ["TECHNIQUE", {{"PARAMETER": …}}]')


def data(told: str, label_column: str) -> jobs_pb2.Data | None:
    """A file of texts when there is one of that name, else a dataset's reference. Raises ValueError for a file that is a dataset."""
    if not told:
        return None
    path = Path(told)
    if not path.is_file():
        return jobs_pb2.Data(dataset=told, label_column=label_column)
    if path.suffix in (".jsonl", ".csv", ".parquet", ".npz"):
        raise ValueError(f"{told} is a table: upload it first with `hone data push {told} NAME`, then name NAME here")
    return jobs_pb2.Data(texts=_lines(path))


def _lines(path: Path) -> list[str]:
    """Distinct lines that are not empty, in order."""
    return list(dict.fromkeys(line.strip() for line in path.read_text().splitlines() if line.strip()))
