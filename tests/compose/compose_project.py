"""One Compose project on this machine's engine, under a name and a port of its own."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
UP_TIMEOUT_S = 180


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class ComposeProject:
    """Runs `docker compose` on `files` (relative to the repository) as project `name`; the gateway is at `address`."""

    def __init__(self, name: str, *files: str) -> None:
        self._arguments = ["docker", "compose", "--project-name", name, *(part for file in files for part in ("--file", str(ROOT / file)))]
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self._environment = {**os.environ, "HONE_PORT": str(port)}

    def run(self, *arguments: str, timeout_s: float = 120) -> str:
        """Standard output of one Compose command.

        Raises:
            AssertionError: it failed; the message holds what it said.
        """
        done = subprocess.run(
            [*self._arguments, *arguments], env=self._environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"docker compose {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def up(self, *arguments: str) -> None:
        """Starts what is not running and returns when all of it is healthy."""
        self.run("up", "--detach", "--wait", "--remove-orphans", *arguments, timeout_s=UP_TIMEOUT_S)

    def exit_codes(self) -> dict[str, set[int]]:
        """Exit codes of each service's containers that have ended."""
        codes: dict[str, set[int]] = {}
        for container in self._described("--all"):
            codes.setdefault(container["Service"], set()).add(container["ExitCode"])
        return codes

    def published(self) -> dict[str, set[str]]:
        """What each service's replicas publish on the host, as `host:port->port/protocol`."""
        ports: dict[str, set[str]] = {}
        for each in self._described():
            ports.setdefault(each["Service"], set()).update(port for port in each["Ports"].split(", ") if "->" in port)
        return {service: found for service, found in ports.items() if found}

    def _described(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run("ps", "--format", "json", *arguments).splitlines()]

    def containers(self, service: str) -> list[str]:
        return self.run("ps", "--quiet", service).split()

    def signal(self, container: str, name: str) -> None:
        subprocess.run(["docker", "kill", "--signal", name, container], check=True, capture_output=True, timeout=30)

    @contextmanager
    def paused(self, container: str) -> Iterator[None]:
        """Nothing in the container runs, and its connections stay open, until the end of the block."""
        subprocess.run(["docker", "pause", container], check=True, capture_output=True, timeout=30)
        try:
            yield
        finally:
            subprocess.run(["docker", "unpause", container], check=True, capture_output=True, timeout=30)

    def stop(self, container: str) -> None:
        subprocess.run(["docker", "stop", container], check=True, capture_output=True, timeout=60)

    def remove(self) -> None:
        """Ends every container and deletes the volumes."""
        self.run("down", "--volumes", "--remove-orphans", "--timeout", "5")


def eventually(holds: Callable[[], bool], within_s: float) -> bool:
    """Asks until it holds; other processes tell nothing when they change, so this polls."""
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
