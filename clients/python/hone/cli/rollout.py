"""`hone rollout start|show|promote|back`: an advised version on its way to all users."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hone import rollout, rollout_figures
from hone.cli import show as tables
from hone.cli.connection import client
from hone.cli.traffic import experiment_tables, plan
from hone.client import PASSING, Client
from hone.repository.v1 import models_pb2
from hone.rollout_figures import Figure
from hone.rollout_status import ENOUGH_CALLS, Decision, Status

app = typer.Typer(no_args_is_help=True)
Job = Annotated[str, typer.Argument(help="The job that advised and published the version.")]
Channel = Annotated[str, typer.Option(help="The channel whose calls it is to answer.")]
_COLOURS = {Decision.PROMOTE: "green", Decision.SPLIT: "green", Decision.DONE: "green", Decision.ROLL_BACK: "red", Decision.WAIT: "yellow"}
_MOST_REMARK = 2000


@app.command("start")
def start(
    context: typer.Context,
    job: Job,
    channel: Channel = rollout.CHANNEL,
    share: Annotated[
        str, typer.Option(help="Of the calls, how many the version answers: 10%, or 0.1. Default: 10%, and none with --shadow.")
    ] = "",
    shadow: Annotated[str, typer.Option(help="Of the control's calls, how many are copied to the version to compare its answers.")] = "",
    max_error_rate: Annotated[
        float | None, typer.Option(help="Take it out when more of its calls fail, and more than the control's.")
    ] = None,
    max_p99_ratio: Annotated[float | None, typer.Option(help="Take it out when its p99 is over this many times the control's.")] = None,
    min_agreement: Annotated[float | None, typer.Option(help="Take it out when its copied answers agree less with the control's.")] = None,
    min_calls: Annotated[int, typer.Option(help="Fewest calls before it is judged; 0: the server's default.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="End another split that the channel has.")] = False,
) -> None:
    """Let the advised version answer a share of the calls, or copies of some alone, guarded by what was predicted of it."""
    guardrails = models_pb2.Guardrails(
        max_error_rate=max_error_rate, max_p99_ratio=max_p99_ratio, min_agreement=min_agreement, min_calls=min_calls
    )
    with client(context) as hone:
        made = hone.rollouts.start(
            job,
            channel=channel,
            share=_share("--share", share),
            shadow=_share("--shadow", shadow) or 0.0,
            guardrails=guardrails,
            replace=replace,
        )
    tables.console.print(plan(f"rollout of job {job} through {channel}", made))
    tables.console.print(f"watch it with `hone rollout show {job} --watch`", highlight=False, soft_wrap=True)


@app.command("show")
def show(
    context: typer.Context,
    job: Job,
    channel: Channel = rollout.CHANNEL,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again until there is something to do.")] = False,
    interval: Annotated[float, typer.Option(min=0.01, help="Seconds between looks.")] = 5.0,
    enough: Annotated[int, typer.Option(min=1, help="Calls of each arm that are enough to promote.")] = ENOUGH_CALLS,
    lower_is_better: Annotated[list[str] | None, typer.Option(help="An outcome of which less is better; may be repeated.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the job's page with the live figures.")] = None,
) -> None:
    """Show what the version does beside what was predicted, and whether to wait, promote or roll back; status 1 to roll back."""
    with client(context) as hone:

        def look() -> Status:
            return hone.rollouts.status(job, channel=channel, enough_calls=enough, lower_is_better=lower_is_better or ())

        found = look()
        if watch:
            found = _watch(found, look, interval)
        else:
            tables.console.print(status_tables(found))
        if html is not None:
            html.write_text(_page(hone, job, found), encoding="utf-8")
            tables.console.print(f"written to {html}", highlight=False, markup=False)
    raise typer.Exit(int(found.decision is Decision.ROLL_BACK))


@app.command("promote")
def promote(context: typer.Context, job: Job, channel: Channel = rollout.CHANNEL) -> None:
    """Point the channel at the advised version and end the split."""
    with client(context) as hone:
        version = hone.rollouts.promote(job, channel=channel)
    tables.console.print(f"{version.name}:{channel} is version {version.version} now; its calls are no longer split")


@app.command("back")
def back(context: typer.Context, job: Job, channel: Channel = rollout.CHANNEL) -> None:
    """End the split, or the promotion: the version before answers all of the channel's calls."""
    with client(context) as hone:
        version = hone.rollouts.back(job, channel=channel)
    tables.console.print(f"{version.name}:{channel} is version {version.version} again; its calls are not split")


def _share(option: str, told: str) -> float | None:
    """`10%` or `0.1`; None for nothing. Raises ValueError."""
    if not told:
        return None
    try:
        return float(told.removesuffix("%")) / (100 if told.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"{option}: {told!r} is no share: 10%, or 0.1") from None


def _watch(found: Status, look: Callable[[], Status], interval_s: float) -> Status:
    """Looks until there is something to do, or until Ctrl-C; the last status."""
    with Live(status_tables(found), console=tables.console, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while found.decision is Decision.WAIT:
            time.sleep(interval_s)
            try:
                found = look()
                live.update(status_tables(found), refresh=True)
            except grpc.RpcError as error:  # it may be back at the next look
                if error.code() not in PASSING:
                    raise
                live.update(Group(status_tables(found), f"[red]{escape(f'{error.code().name}: {error.details()}')}[/]"), refresh=True)
    return found


def _page(hone: Client, job_id: str, found: Status) -> str:
    live = rollout_figures.live(found.found) if found.found is not None else []
    return hone.jobs.report_page(job_id, live=live, live_remark=f"{found.decision}: {found.reason}"[:_MOST_REMARK])


def status_tables(found: Status) -> Group:
    """What was counted, the figures beside the predicted ones, what must be known to read them, and the decision."""
    parts: list[RenderableType] = []
    if found.found is not None:
        parts += [experiment_tables(found.found), figures_table(found.figures), *(f"[dim]{escape(note)}[/]" for note in found.notes)]
    return Group(*parts, f"[bold {_COLOURS[found.decision]}]{found.decision}[/]: {escape(found.reason)}")


def figures_table(figures: Sequence[Figure], title: str = "Predicted and live") -> Table:
    """Each figure beside its prediction, their ratio, and whether the prediction was right."""
    rows = [
        (
            figure.name,
            _told(figure.predicted, figure.unit),
            _told(figure.live, figure.unit),
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            {None: "", True: "[green]yes[/]", False: "[yellow]no[/]"}[figure.is_close],
        )
        for figure in figures
    ]
    return tables.table(title, ("", "predicted", "live", "ratio", "within 15 %"), rows)


def _told(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return {"ms": f"{value:.1f} ms", "x": f"{value:.2f}x", "%": f"{value:.2%}", "/s": f"{value:.0f}/s"}[unit]
