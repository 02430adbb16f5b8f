"""The `hone` command."""

import sys
from typing import Annotated

import grpc
import typer

from hone.cli import advise, cache, data, inference, jobs, models, report, rollout, top, traffic, worth
from hone.cli.connection import Connection

app = typer.Typer(
    help="Push models, optimize them, call what is served.", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)
for module in (models, jobs, advise, worth, report, inference, top):
    module.register(app)
app.add_typer(jobs.app, name="jobs", help="Optimization jobs.")
app.add_typer(data.app, name="data", help="Datasets.")
app.add_typer(cache.app, name="cache", help="The cache service.")
app.add_typer(rollout.app, name="rollout", help="An advised version on its way to all users.")
app.add_typer(traffic.app, name="traffic", help="Calls split among versions: A/B, shadow, guardrails.")


@app.callback()
def connect(
    context: typer.Context,
    address: Annotated[
        str | None, typer.Option(envvar="HONE_ADDRESS", help="host:port of a gateway; default: this machine's services.")
    ] = None,
    optimization: Annotated[str | None, typer.Option(help="host:port of the optimization service.")] = None,
    inference_address: Annotated[str | None, typer.Option("--inference", help="host:port of inference.")] = None,
    cache_address: Annotated[str | None, typer.Option("--cache", help="host:port of the cache service.")] = None,
) -> None:
    """Push models, optimize them, call what is served."""
    context.obj = Connection(address, optimization, inference_address, cache_address)


def main() -> None:
    """Ends with status 1 and one line when the server refuses, with status 2 for a bad command line."""
    try:
        app()
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
    except (OSError, ValueError, TimeoutError) as error:
        sys.exit(str(error))
