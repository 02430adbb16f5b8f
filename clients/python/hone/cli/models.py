"""`hone push`, `pull`, `models`, `promote`, `rollback`, `delete`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from hone.cli import show
from hone.cli.connection import client

Channel = Annotated[str, typer.Option(help="The channel to move.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (push, pull, promote, rollback, delete):
        app.command()(command)
    app.command("models")(list_models)


def push(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="A Hugging Face folder with safetensors, or one with model.onnx.", exists=True, file_okay=False)
    ],
    name: Annotated[str, typer.Argument(help="The model's name.")],
    channel: Annotated[list[str] | None, typer.Option(help="A channel to point at the new version; may be repeated.")] = None,
) -> None:
    """Upload a model folder as a new version."""
    with client(context) as hone, _bar() as bar:
        task = bar.add_task(f"push {name}", total=None)
        model = hone.models.push(
            folder, name, channels=channel or (), progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    show.console.print(show.versions([model]))


def pull(context: typer.Context, reference: str, folder: Annotated[Path, typer.Argument(help="Where the files go.")]) -> None:
    """Download a version and check its digests."""
    with client(context) as hone, _bar() as bar:
        total = hone.models.get(reference).size_bytes
        task = bar.add_task(f"pull {reference}", total=total)
        model = hone.models.pull(reference, folder, progress=lambda done, _: bar.update(task, completed=done))
    show.console.print(f"{model.name}@{model.version} is in {folder}")


def list_models(context: typer.Context, name: Annotated[str, typer.Argument(help="Only this model.")] = "") -> None:
    """List versions and channels."""
    with client(context) as hone:
        show.console.print(show.versions(hone.models.list(name)))


def promote(context: typer.Context, name: str, version: int, channel: Channel = "stable") -> None:
    """Point a channel at a version."""
    with client(context) as hone:
        model = hone.models.promote(name, version, channel)
    show.console.print(f"{name}:{channel} is version {model.version} now")


def rollback(context: typer.Context, name: str, channel: Channel = "stable") -> None:
    """Point a channel back at the version before."""
    with client(context) as hone:
        model = hone.models.roll_back(name, channel)
    show.console.print(f"{name}:{channel} is version {model.version} again")


def delete(context: typer.Context, name: str, version: int) -> None:
    """Delete a version that no channel points at."""
    with client(context) as hone:
        hone.models.delete(name, version)
    show.console.print(f"{name}@{version} is deleted")


def _bar() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=show.console)
