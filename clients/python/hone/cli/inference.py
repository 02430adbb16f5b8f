"""`hone embed`, `classify`, `serving`."""

import json
from typing import Annotated

import typer

from hone.cli import show
from hone.cli.connection import client

Texts = Annotated[list[str], typer.Argument(help="One or more texts.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (embed, classify, serving):
        app.command()(command)


def embed(context: typer.Context, model: str, texts: Texts) -> None:
    """Print each text's vector as a JSON line."""
    with client(context) as hone:
        for vector in hone.embed(model, texts).vectors:
            typer.echo(json.dumps([round(float(x), 6) for x in vector]))


def classify(
    context: typer.Context, model: str, texts: Texts, top_k: Annotated[int, typer.Option(help="Labels per text; 0: all.")] = 1
) -> None:
    """Print each text's most probable labels as a JSON line."""
    with client(context) as hone:
        for labels in hone.classify(model, texts, top_k=top_k).labels:
            typer.echo(json.dumps({label.label: round(label.score, 4) for label in labels}))


def serving(context: typer.Context) -> None:
    """Show what the replica that answers serves, and how."""
    with client(context) as hone:
        show.console.print(show.serving(hone.serving(), hone.statistics()))
