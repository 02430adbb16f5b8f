"""The running suite: `python -m services` in a folder of its own, on free ports, with a real model served."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hone
import pytest

from tests.models import minilm

SERVICES = ("cache", "optimization", "inference")


@dataclass(frozen=True)
class Suite:
    """Addresses of a running suite and the folder that its data lies in."""

    addresses: dict[str, str]
    folder: Path
    process: subprocess.Popen[str]

    def client(self, *, retries: bool = True) -> hone.Client:
        return hone.Client(**self.addresses, retries=retries)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def start_suite(folder: Path, **settings: str) -> Suite:
    """Starts the suite and returns when it serves. `settings` are environment variables."""
    ports = dict(zip(SERVICES, free_ports(3), strict=True))
    numbers = {f"HONE_{name.upper()}_PORT": str(port) for name, port in ports.items()}
    environment = {**os.environ, **numbers, "HONE_FOLDER": str(folder), **settings}
    log = (folder / "log.txt").open("w")
    process = subprocess.Popen([sys.executable, "-m", "services"], env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    log.close()
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("hone is up"):
        process.wait(30)
        raise AssertionError((folder / "log.txt").read_text()[-4000:])
    return Suite({name: f"127.0.0.1:{port}" for name, port in ports.items()}, folder, process)


def stop_suite(suite: Suite) -> int:
    """Stops the suite as an operator would; its exit status."""
    if suite.process.poll() is None:
        suite.process.send_signal(signal.SIGTERM)
    status = suite.process.wait(60)
    if suite.process.stdout is not None:
        suite.process.stdout.close()
    return status


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A running suite that serves MiniLM as `minilm`. Shared: leave it as you found it."""
    running = start_suite(tmp_path_factory.mktemp("suite"), HONE_OPTIMIZATION_EVALUATION_S="4")
    try:
        with running.client() as client:
            client.models.push(minilm(), "minilm", channels=["stable"])
            client.wait_until_served("minilm")
        yield running
    finally:
        assert stop_suite(running) == 0
