"""Databases for jobs: SQLite in a file, and a real PostgreSQL server where one is installed."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

_DEBIAN = Path("/usr/lib/postgresql")


def _program(name: str) -> Path | None:
    """On the path, or where Debian keeps each version's."""
    versions = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = shutil.which(name)
    return Path(found) if found else versions[-1] if versions else None


def _identity() -> dict[str, Any]:
    """For subprocess: the server refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PostgreSQL:
    """A running server. What it gives as a database is a schema, which is made in no time and as empty."""

    def __init__(self, port: int) -> None:
        self._url = f"postgresql+psycopg://hone@127.0.0.1:{port}/postgres"
        self._numbers = count()

    def database(self) -> str:
        name = f"jobs_{next(self._numbers)}"
        engine = sql.create_engine(self._url)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        engine.dispose()
        return f"{self._url}?options=-csearch_path%3D{name}"


@contextmanager
def _running(initdb: Path, server: Path) -> Iterator[PostgreSQL]:
    # Not below pytest's folders, which nobody but this user may enter.
    with tempfile.TemporaryDirectory(prefix="hone-postgres-", ignore_cleanup_errors=True) as folder:
        identity, data, port = _identity(), Path(folder) / "data", _free_port()
        if identity:
            os.chown(folder, identity["user"], identity["group"])
        made = [initdb, "-D", data, "-U", "hone", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, cwd=folder, **identity)
        options = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=60"]
        command: Sequence[str | Path] = [server, "-D", data, *(word for option in options for word in ("-c", option))]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder, **identity) as process:
            try:
                assert process.stderr is not None
                assert any("ready to accept connections" in line for line in process.stderr), "PostgreSQL ended"
                yield PostgreSQL(port)
            finally:
                process.send_signal(signal.SIGQUIT)  # at once, its own processes too


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    initdb, server = _program("initdb"), _program("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    with _running(initdb, server) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database; a test that takes it runs against each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    server: PostgreSQL = request.getfixturevalue("postgres")
    return server.database()
