"""`hone data push|ls|show|pull|delete`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from hone.cli import show
from hone.cli.connection import client
from hone.repository.v1 import datasets_pb2 as pb

app = typer.Typer(no_args_is_help=True)

Reference = Annotated[str, typer.Argument(help="NAME@VERSION, or NAME for the newest version.")]
MAX_CELL_CHARACTERS = 200


@app.command()
def push(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A .jsonl, .csv, .parquet or .npz file.", exists=True, dir_okay=False)],
    name: Annotated[str, typer.Argument(help="The dataset's name.")],
) -> None:
    """Upload a file as a new version."""
    with client(context) as hone, _bar() as bar:
        task = bar.add_task(f"push {name}", total=file.stat().st_size)
        dataset = hone.datasets.push(file, name, progress=lambda done, total: bar.update(task, completed=done, total=total))
    show.console.print(_versions([dataset]))


@app.command("ls")
def list_datasets(context: typer.Context, name: Annotated[str, typer.Argument(help="Only this dataset.")] = "") -> None:
    """List versions."""
    with client(context) as hone:
        show.console.print(_versions(hone.datasets.list(name)))


@app.command("show")
def show_dataset(
    context: typer.Context, reference: Reference, rows: Annotated[int, typer.Option(help="How many of the first rows.", min=1, max=100)] = 5
) -> None:
    """Show a version's rows, columns and first rows."""
    with client(context) as hone:
        dataset = hone.datasets.get(reference)
        first = hone.datasets.preview(f"{dataset.name}@{dataset.version}", rows)
    show.console.print(_versions([dataset]))
    show.console.print(show.table("", ("column", "kind"), [(escape(column.name), _kind(column)) for column in dataset.columns]))
    show.console.print(_rows([column.name for column in dataset.columns], first))


@app.command()
def pull(
    context: typer.Context, reference: Reference, file: Annotated[Path, typer.Argument(help="Where the rows go.", dir_okay=False)]
) -> None:
    """Download a version's file and check its digest."""
    with client(context) as hone, _bar() as bar:
        task = bar.add_task(f"pull {reference}", total=None)
        dataset = hone.datasets.pull(reference, file, progress=lambda done, total: bar.update(task, completed=done, total=total))
    show.console.print(f"{dataset.name}@{dataset.version} is in {file}", highlight=False)


@app.command()
def delete(context: typer.Context, name: str, version: int) -> None:
    """Delete a version; its number is never given again."""
    with client(context) as hone:
        hone.datasets.delete(name, version)
    show.console.print(f"{name}@{version} is deleted", highlight=False)


def _bar() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=show.console)


def _versions(datasets: Iterable[pb.DatasetVersion]) -> Table:
    rows = [
        (
            f"{dataset.name}@{dataset.version}",
            pb.DatasetFormat.Name(dataset.format).removeprefix("DATASET_FORMAT_").lower(),
            f"{dataset.rows:,}",
            str(len(dataset.columns)),
            show.megabytes(dataset.file.size_bytes),
            dataset.created.ToDatetime().isoformat(" ", "seconds"),
        )
        for dataset in datasets
    ]
    return show.table("", ("dataset", "format", "rows", "columns", "size", "created (UTC)"), rows)


def _kind(column: pb.Column) -> str:
    kind = pb.ColumnKind.Name(column.kind).removeprefix("COLUMN_KIND_").lower()
    return f"{kind} of {column.dtype} {list(column.shape)}" if column.kind == pb.COLUMN_KIND_ARRAY else kind


def _rows(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Table:
    """Texts and numbers need no common side: every column to the left, long cells folded."""
    made = Table(header_style="bold")
    for column in columns:
        made.add_column(escape(column), overflow="fold")
    for row in rows:
        made.add_row(*(_cell(row[column]) for column in columns))
    return made


def _cell(value: Any) -> str:
    """Markup in the data is shown, not obeyed."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escape(text if len(text) <= MAX_CELL_CHARACTERS else text[:MAX_CELL_CHARACTERS] + "…")
