"""`python -m services`: up, down, and a start that cannot be, each with its exit status and without anything left behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from services.chassis.probe import probe

ROOT = Path(__file__).parents[1]
SERVICES = ("cache", "optimization", "inference")


def ports() -> dict[str, str]:
    """Free ones, one per service."""
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for each in (a, b, c):
            each.bind(("127.0.0.1", 0))
        return {name: str(each.getsockname()[1]) for name, each in zip(SERVICES, (a, b, c), strict=True)}


@contextmanager
def suite(folder: Path, numbers: dict[str, str], **settings: str) -> Iterator[subprocess.Popen[str]]:
    environment = {
        **os.environ,
        **{f"HONE_{name.upper()}_PORT": port for name, port in numbers.items()},
        "HONE_FOLDER": str(folder),
        **settings,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "services"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_up_and_down(tmp_path: Path, number: signal.Signals) -> None:
    numbers = ports()
    with suite(tmp_path / "data", numbers) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("hone is up: ")
        assert all(f"{name} 127.0.0.1:{port}" in line for name, port in numbers.items())
        assert [probe(f"127.0.0.1:{port}") for port in numbers.values()] == ["", "", ""]
        children = children_of(process)
        assert len(children) == 3
        process.send_signal(number)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert not any(child.is_running() for child in children)
    assert "Traceback" not in log
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["cache", "optimization", "repository"]


def test_a_taken_port_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    numbers = ports()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", int(numbers["optimization"])))
        holder.listen()
        with suite(tmp_path, numbers) as process:
            out, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"optimization cannot start: 127.0.0.1:{numbers['optimization']} is taken" in log
    assert "hone is up" not in out
    assert probe(f"127.0.0.1:{numbers['cache']}") != ""  # it had started, and was stopped again


def test_a_wrong_setting_names_the_service_and_the_setting(tmp_path: Path) -> None:
    with suite(tmp_path, ports(), HONE_OPTIMIZATION_JOB_NICE="40", HONE_OPTIMIZATION_NONSENSE="1") as process:
        out, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "optimization did not start" in log
    assert "HONE_OPTIMIZATION_JOB_NICE: " in log
    assert "HONE_OPTIMIZATION_NONSENSE: unknown setting" in log
    assert "hone is up" not in out


def test_a_service_that_ends_by_itself_takes_the_suite_down(tmp_path: Path) -> None:
    with suite(tmp_path, ports()) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("hone is up")
        children = children_of(process)
        next(child for child in children if "services.inference" in child.cmdline()).kill()
        _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "inference ended by itself" in log
    assert not any(child.is_running() for child in children)
