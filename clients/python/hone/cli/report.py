"""`hone report`: what a job found, as a page that may be passed on."""

from pathlib import Path
from typing import Annotated

import typer

from hone.cli import show
from hone.cli.connection import client
from hone.client import Client


def register(root: typer.Typer) -> None:
    root.command()(report)


def report(
    context: typer.Context,
    job: str,
    out: Annotated[Path | None, typer.Option(help="Where to write it. Default: report-JOB.html in this folder.")] = None,
) -> None:
    """Write a job's report as one page with plots that opens without a network.

    Of a job of `hone advise` it tells the verdict first, then what was tried, what serving it brings, what it is worth, and the risks;
    also of one that was cancelled or failed, as far as it came.
    """
    with client(context) as hone:
        write(hone, job, out or Path(f"report-{job}.html"))


def write(hone: Client, job_id: str, path: Path) -> None:
    """Raises grpc.RpcError, and OSError where the file cannot be written."""
    path.write_text(hone.jobs.report_page(job_id), encoding="utf-8")
    show.console.print(f"written to {path}", highlight=False, markup=False)
