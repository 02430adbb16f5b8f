"""Which services a command talks to."""

from dataclasses import dataclass

import typer

from hone.client import Client


@dataclass(frozen=True, slots=True)
class Connection:
    address: str | None
    optimization: str | None
    inference: str | None
    cache: str | None

    def open(self) -> Client:
        return Client(self.address, optimization=self.optimization, inference=self.inference, cache=self.cache)


def client(context: typer.Context) -> Client:
    """The client for a command; close it with `with`."""
    connection: Connection = context.obj
    return connection.open()
