"""`hone cache stats|clear|warm`."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hone.cache.v1 import cache_pb2
from hone.cli import show
from hone.cli.connection import client
from hone.client import Client
from hone.inference.v1 import inference_pb2

app = typer.Typer(no_args_is_help=True)

Ask = Callable[[Sequence[str]], inference_pb2.Served]


@app.command()
def stats(context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show what the cache holds and how often it helped."""
    with client(context) as hone:
        found = hone.cache.stats()
    if as_json:
        typer.echo(json.dumps(_plain(found)))
    else:
        show.console.print(show.table("", ("cache", ""), _rows(found)))


@app.command()
def clear(
    context: typer.Context,
    namespace: Annotated[str, typer.Argument(help="Whose entries go, e.g. answers/NAME@VERSION.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget every entry of a namespace."""
    if not yes:
        typer.confirm(f"Forget every entry of {namespace}?", abort=True)
    with client(context) as hone:
        hone.cache.clear(namespace)
    show.console.print(f"{namespace} is empty now", highlight=False, markup=False)


@app.command()
def warm(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="NAME, NAME:CHANNEL or NAME@VERSION of a model for texts.")],
    file: Annotated[
        Path,
        typer.Argument(help="One text a line; of a .jsonl file one object a line, with the text in a field.", exists=True, dir_okay=False),
    ],
    field: Annotated[str, typer.Option(help="The field of a .jsonl file's objects that holds the text.")] = "text",
    batch: Annotated[int, typer.Option(help="Texts of one call.", min=1)] = 32,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut what is longer than the model takes; without it that ends the command.")
    ] = False,
) -> None:
    """Ask inference for texts, so that their answers are remembered before callers come.

    They are remembered by the replicas that answered, and by all where inference has a cache service.
    """
    texts = list(dict.fromkeys(_texts(file, field)))  # a text that comes twice would look as if it had been known
    known = 0
    with client(context) as hone, _bar() as bar:
        task = bar.add_task(f"warm {model}", total=len(texts))
        ask = _asking(hone, model, truncate)
        for some in _batches(texts, batch):
            known += ask(some).cached_rows
            bar.advance(task, len(some))
    show.console.print(f"{len(texts)} texts: {known} were known, {len(texts) - known} are now", highlight=False)


def _asking(hone: Client, model: str, truncate: bool) -> Ask:
    """Embeds until the model turns out to be no embedding model, then classifies; what can do neither is refused by that."""
    classifies = False

    def ask(texts: Sequence[str]) -> inference_pb2.Served:
        nonlocal classifies
        if not classifies:
            try:
                return hone.embed(model, texts, truncate=truncate).served
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
        answer = hone.classify(model, texts, truncate=truncate).served
        classifies = True
        return answer

    return ask


def _texts(file: Path, field: str) -> Iterator[str]:
    """Raises ValueError for a line that holds no text, with its number."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _text(line, field, f"{file}:{number}") if file.suffix == ".jsonl" else line.rstrip("\r\n")


def _text(line: str, field: str, place: str) -> str:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: no JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get(field), str):
        raise ValueError(f"{place}: no object with a text in its field {field!r}")
    return str(found[field])


def _batches(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (texts[begin : begin + size] for begin in range(0, len(texts), size))


def _bar() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=show.console)


def _rows(found: cache_pb2.GetStatsResponse) -> list[tuple[str, str]]:
    asked = found.hits + found.misses
    return [
        ("entries", f"{found.entries:,}"),
        ("size", f"{show.megabytes(found.bytes)} of {show.megabytes(found.limits.max_bytes)}"),
        ("hits", f"{found.hits:,} of {asked:,}" + (f" ({found.hits / asked:.0%})" if asked else "")),
        ("shared by waiting", f"{found.shared:,}"),
        ("puts", f"{found.puts:,}"),
        ("deletes", f"{found.deletes:,}"),
        ("evictions", f"{found.evictions:,}"),
        ("leases", f"{found.leases:,}, {found.leases_lost:,} of them lost"),
        ("corrupt", f"{found.corrupt:,}"),
    ]


def _plain(message: Message) -> dict[str, Any]:
    """Fields by name, zeros too; seconds where the contract has durations. protobuf's own JSON writes int64 as strings."""
    plain: dict[str, Any] = {}
    for described in message.DESCRIPTOR.fields:
        value = getattr(message, described.name)
        if isinstance(value, Duration):
            plain[f"{described.name}_s"] = value.ToNanoseconds() / 1e9
        else:
            plain[described.name] = _plain(value) if isinstance(value, Message) else value
    return plain
