"""A real Valkey or Redis server on loopback, for as long as a block lasts."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from benchmarks.suite import free_ports

PROGRAMS = ("valkey-server", "redis-server")


@dataclass
class Server:
    """A server that keeps nothing on disk. `process` is replaced when it is started again."""

    program: str
    port: int
    options: Sequence[str]
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns when the server takes calls. Raises RuntimeError with what it said."""
        own = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]
        self.process = subprocess.Popen([self.program, *own, *self.options], stdout=subprocess.PIPE, text=True)
        said: list[str] = []
        assert self.process.stdout is not None  # noqa: S101 (it is a pipe)
        for line in self.process.stdout:
            said.append(line)
            if "eady to accept connections" in line:
                return
        raise RuntimeError(f"{self.program} ended: {''.join(said)[-2000:]}")

    def kill(self) -> None:
        """As `kill -9`, of a server that is stopped too."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None


def program() -> str | None:
    """The server's program where one is installed; Valkey's before Redis's."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def running_server(*options: str) -> Iterator[Server]:
    """A server with further command line options. Raises LookupError where no program is installed."""
    found = program()
    if found is None:
        raise LookupError(f"none of {' and '.join(PROGRAMS)} is installed (Debian: apt-get install redis-server)")
    (port,) = free_ports(1)
    server = Server(found, port, options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
