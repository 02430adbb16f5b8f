"""`hone cache stats|clear`."""

import typer

from hone.cli import show
from hone.cli.connection import client

app = typer.Typer(no_args_is_help=True)


@app.command()
def stats(context: typer.Context) -> None:
    """Show what the cache holds and how often it helped."""
    with client(context) as hone:
        found = hone.cache.stats()
    asked = found.hits + found.misses
    rows = [
        ("entries", str(found.entries)),
        ("size", f"{show.megabytes(found.bytes)} of {show.megabytes(found.limits.max_bytes)}"),
        ("hits", f"{found.hits} of {asked}" + (f" ({found.hits / asked:.0%})" if asked else "")),
        ("evictions", str(found.evictions)),
        ("corrupt", str(found.corrupt)),
    ]
    show.console.print(show.table("", ("cache", ""), rows))


@app.command()
def clear(context: typer.Context, namespace: str) -> None:
    """Forget every entry of a namespace."""
    with client(context) as hone:
        show.console.print(f"{hone.cache.clear(namespace)} entries forgotten")
