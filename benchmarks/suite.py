"""The services as programs of their own, on free ports, in a folder of their own, for as long as a block lasts."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import hone

SERVICES = ("cache", "optimization", "inference")
STOP_S = 60.0


@dataclass(frozen=True)
class Suite:
    """A running `python -m services`: where each service listens, and the folder of its data and log."""

    addresses: Mapping[str, str]
    folder: Path
    process: subprocess.Popen[str]

    def client(self, *, retries: bool = True) -> hone.Client:
        """A client of its services; close it with `with`."""
        at = self.addresses
        return hone.Client(optimization=at["optimization"], inference=at["inference"], cache=at["cache"], retries=retries)

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()


def free_ports(count: int) -> list[int]:
    """Distinct ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def start_suite(folder: Path, **settings: str) -> Suite:
    """Starts the suite and returns when it serves; `settings` are environment variables. Raises RuntimeError with its log."""
    ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
    numbers = {f"HONE_{name.upper()}_PORT": str(port) for name, port in ports.items()}
    process = _start("services", folder, {**numbers, "HONE_FOLDER": str(folder), **settings})
    suite = Suite({name: f"127.0.0.1:{port}" for name, port in ports.items()}, folder, process)
    if process.stdout is None or not process.stdout.readline().startswith("hone is up"):
        process.wait(STOP_S)
        raise RuntimeError(suite.log[-4000:])
    return suite


def stop_suite(suite: Suite) -> int:
    """Stops the suite as an operator would; its exit status. Raises subprocess.TimeoutExpired."""
    return stop(suite.process)


@contextmanager
def running_suite(**settings: str) -> Iterator[Suite]:
    """A suite in a folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="hone-") as folder:
        suite = start_suite(Path(folder), **settings)
        try:
            yield suite
        finally:
            stop_suite(suite)


@contextmanager
def running_inference(repository: Path, **settings: str) -> Iterator[str]:
    """Inference alone over a repository that exists; yields its address once it listens."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="hone-") as folder:
        environment = {"HONE_INFERENCE_PORT": str(port), "HONE_INFERENCE_REPOSITORY": str(repository), **settings}
        process = _start("services.inference", Path(folder), environment)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            stop(process)


def stop(process: subprocess.Popen[str]) -> int:
    """SIGTERM and its exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    status = process.wait(STOP_S)
    if process.stdout is not None:
        process.stdout.close()
    return status


def _start(module: str, folder: Path, settings: Mapping[str, str]) -> subprocess.Popen[str]:
    with (folder / "log.txt").open("w") as log:
        command = [sys.executable, "-m", module]
        return subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, stderr=log, text=True)
