"""An inference service of the trial's own: a process on loopback over a repository that lasts as long as it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from services.optimization.advisor.serving.control_wire import Control, ControlFailed
from services.optimization.techniques import Model
from services.repository.store import Origin, Repository

MODEL = "trial"
START_S = 120.0
LOAD_S = 120.0
STOP_S = 10.0
_LOG_TAIL_BYTES = 2000

_PREFIX = "HONE_INFERENCE_"
# Of the operator's settings, those that would have the trial meet the service itself, its data, or whoever watches it.
_PLACES = frozenset(
    _PREFIX + name for name in ("HOST", "PORT", "REPOSITORY", "STATE", "CACHE", "REPLICA", "METRICS_HOST", "METRICS_PORT", "OTLP_ENDPOINT")
)
# A worker's own, which no serving process is started with.
_OF_WORKER = frozenset({"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OTEL_EXPORTER_OTLP_ENDPOINT"})


class TrialFailed(Exception):
    """Serving could not be tried. The text says why, with the end of the service's log."""


class TrialService:
    """Serves what it is given, by the settings that the environment sets otherwise, on the cores of this process."""

    def __init__(self, folder: Path, given: Mapping[str, str]) -> None:
        """Starts it. Raises TrialFailed."""
        self._repository = Repository(folder / "repository")
        self._log = folder / "log.txt"
        self._replica = f"trial-{uuid.uuid4().hex}"
        port = _free_port()
        self.address = f"127.0.0.1:{port}"
        own = {"HOST": "127.0.0.1", "PORT": str(port), "REPOSITORY": str(self._repository.root), "REPLICA": self._replica, "GRACE_S": "1"}
        kept = {name: value for name, value in given.items() if name.upper() not in _PLACES | _OF_WORKER}
        command = [sys.executable, "-m", "services.optimization.advisor.serving.launch", "services.inference"]
        environment = {**kept, **{_PREFIX + name: value for name, value in own.items()}}
        with self._log.open("wb") as log:
            try:
                self._process = subprocess.Popen(  # noqa: S603  our own program
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
                )
            except OSError as error:
                raise TrialFailed(f"the service could not be started: {error}") from error
        self._control = Control(self.address)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_up(self, start_s: float) -> None:
        """Raises TrialFailed."""
        end = time.monotonic() + start_s
        while self._control.replica() != self._replica:
            self.check()
            if time.monotonic() > end:
                raise TrialFailed(f"the service did not listen within {start_s:g} s{self._tail()}")

    def check(self) -> None:
        """Raises TrialFailed where the service has ended."""
        status = self._process.poll()
        if status is not None:
            how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
            raise TrialFailed(f"the service ended {how}{self._tail()}")

    def add(self, model: Model, serving: Mapping[str, Any]) -> str:
        """Seals a version with this advice, and answers its reference once it is served. Raises TrialFailed."""
        try:
            with self._repository.staging() as staged:
                shutil.copytree(model.folder, staged, dirs_exist_ok=True, copy_function=_link, ignore=shutil.ignore_patterns(".*"))
                # A job made it: else what is a program would not be run.
                origin = Origin(job=MODEL, recipe={"serving": dict(serving)} if serving else {})
                reference = self._repository.seal(staged, MODEL, model.signature, origin).reference
            self._control.load(reference, LOAD_S)
        except (ControlFailed, OSError) as error:
            self.check()
            raise TrialFailed(f"a version could not be served: {error}{self._tail()}") from error
        return reference

    def remove(self, reference: str) -> None:
        """Frees a version's memory. Raises TrialFailed."""
        try:
            self._control.unload(reference)
        except ControlFailed as error:
            self.check()
            raise TrialFailed(str(error)) from error

    def cpu_s(self) -> float:
        """Processor seconds of the service and its processes so far; 0 of those that have ended."""
        with suppress(psutil.NoSuchProcess):
            service = psutil.Process(self.pid)
            return sum(_cpu_s(process) for process in (service, *service.children(recursive=True)))
        return 0.0

    def end(self) -> None:
        """Ends the service and whatever it started."""
        self._control.close()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        with suppress(ProcessLookupError):  # the group keeps its number while somebody is in it
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None  # noqa: S101 (it was asked for)
        self._process.stdin.close()

    def _tail(self) -> str:
        with suppress(OSError), self._log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES))
            if text := file.read().decode(errors="replace").strip():
                return f"; its log ends: {text}"
        return ""


@contextmanager
def trial_service(scratch: Path, given: Mapping[str, str] = os.environ, start_s: float = START_S) -> Iterator[TrialService]:
    """A service that listens, in a folder below `scratch` that is removed with it. Raises TrialFailed."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="serving-", dir=scratch, ignore_cleanup_errors=True))
        service = TrialService(Path(folder), given)
        stack.callback(service.end)
        service.wait_until_up(start_s)
        yield service


def _free_port() -> int:
    """Free a moment ago: should somebody else take it meanwhile, the service cannot listen, and says so."""
    with socket.socket() as attempt:
        attempt.bind(("127.0.0.1", 0))
        return int(attempt.getsockname()[1])


def _cpu_s(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _link(source: str, target: str) -> None:
    """A second name costs no space; where the file system has none, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
