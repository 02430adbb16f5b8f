"""A job's worker as the service sees it: started, listened to, held to its limits, ended with everything that it started."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from services.optimization.failures import FailureClass
from services.optimization.jobs import memory, processes
from services.optimization.jobs.job import Told
from services.optimization.jobs.telling import read_line
from services.optimization.jobs.worker import DISK_FULL

WATCH_S = 0.5
# Past its time a job measures what it has made; one that still runs after so much longer is stuck.
MOST_OVERRUN, MOST_OVERRUN_S = 1.25, 60.0
_LINE_BYTES = 1 << 20
_LOG_TAIL_BYTES = 4096
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Limits:
    """`seconds` 0: none."""

    memory_bytes: int
    seconds: float
    cancel_grace_s: float


@dataclass(frozen=True, slots=True)
class Failure:
    failure_class: FailureClass
    message: str


class WorkerProcess:
    """One worker, from `start` to `ended`."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, limits: Limits) -> None:
        self._process, self._folder, self._limits = process, folder, limits
        self._oom_kills = memory.oom_kills()
        self._started = time.monotonic()
        self._seen_bytes = 0
        self._killed_for: Failure | None = None
        self._watch = asyncio.ensure_future(self._hold_to_limits())

    @classmethod
    async def start(cls, folder: Path, threads: int, limits: Limits) -> "WorkerProcess":
        """Works on the task in `folder`. Raises OSError."""
        environment = {
            **os.environ,
            processes.MARK: str(folder),
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with (folder / "log.txt").open("wb") as log_file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.optimization.jobs.worker",
                str(folder),
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log_file,
                env=environment,
                start_new_session=True,  # so that a signal reaches the worker's own children too
                limit=_LINE_BYTES,
            )
        return cls(process, folder, limits)

    async def told(self) -> AsyncIterator[Told]:
        """What it tells, until it ends."""
        assert self._process.stdout is not None  # noqa: S101 (it was asked for)
        async for line in self._process.stdout:
            yield read_line(line)

    async def ended(self) -> Failure | None:
        """Waits for the end; why it failed, None where it left a result."""
        status = await self._process.wait()
        if status == 0:
            return None
        return self._killed_for or self._why(status)

    async def close(self) -> None:
        """Ends it and whatever it started: one that was killed alone leaves children behind."""
        self._watch.cancel()
        self.kill()
        await self._process.wait()
        with suppress(ProcessLookupError):  # the group keeps its number while somebody is in it
            os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(processes.kill_marked, self._folder)

    def end(self) -> None:
        """Politely first, then hard. Python is not asked: a native call would not let it answer."""
        self._signal(signal.SIGTERM)
        asyncio.get_running_loop().call_later(self._limits.cancel_grace_s, self.kill)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        """To the worker's whole process group; nothing when it has ended."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _hold_to_limits(self) -> None:
        while self._process.returncode is None:
            failure = self._too_long() or await asyncio.to_thread(self._too_much_memory)
            if failure is not None:
                self._killed_for = failure
                self.kill()
                return
            await asyncio.sleep(WATCH_S)

    def _too_long(self) -> Failure | None:
        seconds, ran = self._limits.seconds, time.monotonic() - self._started
        if not seconds or ran <= MOST_OVERRUN * seconds + MOST_OVERRUN_S:
            return None
        message = f"the job was still running after {ran:.0f} s; its budget is {seconds:g} s"
        return Failure(FailureClass.BUDGET_EXCEEDED, message)

    def _too_much_memory(self) -> Failure | None:
        most = self._limits.memory_bytes
        self._seen_bytes = memory.tree_bytes(self._process.pid)
        if self._seen_bytes <= most:
            return None
        self._seen_bytes = memory.exact_tree_bytes(self._process.pid)
        if self._seen_bytes <= most:
            return None
        message = f"the job's processes held {self._seen_bytes / _GB:.2f} GB of memory; its budget is {most / _GB:.2f} GB"
        return Failure(FailureClass.OUT_OF_MEMORY, message)

    def _why(self, status: int) -> Failure:
        if status == -signal.SIGKILL and memory.oom_kills() > self._oom_kills:
            message = f"the system ran out of memory and killed the worker, which last held {self._seen_bytes / _GB:.2f} GB"
            return Failure(FailureClass.OUT_OF_MEMORY, f"{message}; its budget is {self._limits.memory_bytes / _GB:.2f} GB")
        if status == -signal.SIGKILL:
            return Failure(FailureClass.INTERNAL, "the worker was killed (SIGKILL): by hand, or by the system")
        if status < 0:
            return Failure(FailureClass.INTERNAL, f"the worker was ended by {signal.Signals(-status).name}")
        if status == DISK_FULL:
            return Failure(FailureClass.INTERNAL, "no space is left on the disk for the job's files")
        return Failure(FailureClass.INTERNAL, f"the worker ended with status {status}; its log is in the service's log")

    def log_tail(self) -> str:
        with suppress(OSError), (self._folder / "log.txt").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
        return ""
