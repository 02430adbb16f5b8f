"""One job's work in a process of its own: what it is handed, what it leaves, and the share of the machine that it takes."""

import ctypes
import os
import shutil
import signal
import time
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from pydantic import Field

from services.optimization import folder
from services.optimization.advisor.advice import Advice
from services.optimization.environment import describe
from services.optimization.execution import Execution, execute
from services.optimization.failures import FailureClass, OptimizationFailure
from services.optimization.jobs.exhaustion import disk_is_full, memory_is_full
from services.optimization.making import Progress
from services.optimization.plan import Plan
from services.optimization.remembered import Remembered
from services.optimization.remembered.link import Link
from services.optimization.report import Measurement, Report
from services.repository.manifest import Frozen, Signature

log = structlog.get_logger("hone.jobs")

TASK, RESULT, CHOSEN, SO_FAR = "task.json", "result.json", "chosen", "so_far.json"
DISK_FULL = os.EX_IOERR  # exit status: a result that says so could not be written either
_PR_SET_PDEATHSIG = 1


class Task(Frozen):
    """What the service hands over; folders are absolute."""

    plan: Plan
    original: Path
    signature: Signature
    scratch: Path
    kept_steps: Path
    chosen: Path
    so_far: Path
    cores: tuple[int, ...]
    nice: int
    deadline_seconds: float = Field(0, ge=0, description="from the worker's start; 0 for none")
    cache: str = Field("", description="address of the cache service; empty where there is none")
    cache_ttl_s: float = Field(86_400, gt=0, description="life of what is put there")
    cache_namespace: str = Field("", description="of what is known of the original")
    teacher_namespace: str = Field("", description="of what is known of the plan's teacher")


class Outcome(Frozen):
    """What the worker leaves: a report with the chosen folder, or a failure."""

    report: Report | None = None
    chosen_folder: Path | None = None
    chosen_signature: Signature | None = None
    serving: Mapping[str, Any] = {}
    failure_class: FailureClass | None = None
    failure_message: str = ""


def perform(task: Task, progress: Progress, link: Link) -> Outcome:
    """Runs the job; a failure whose text is fit for the caller becomes an outcome. Raises everything else."""
    deadline = time.monotonic() + task.deadline_seconds if task.deadline_seconds else None
    try:
        execution = execute(
            task.plan,
            task.original,
            task.signature,
            task.scratch,
            task.kept_steps,
            progress,
            deadline,
            Remembered(link, task.cache_namespace),
            Remembered(link, task.teacher_namespace),
            lambda advice: _note(task, advice),
        )
        return _outcome(execution, task.chosen)
    except Exception as error:
        if disk_is_full(error):  # also within a technique's own failure
            raise
        traceback.print_exc()
        if memory_is_full(error):
            return Outcome(failure_class=FailureClass.OUT_OF_MEMORY, failure_message="the job asked for more memory than there is")
        if isinstance(error, OptimizationFailure):
            return Outcome(failure_class=error.failure_class, failure_message=str(error))
        raise


def _note(task: Task, advice: Advice) -> None:
    """A report of what a search knows so far, for a job that does not come to its end.

    A disk that does not take it ends no search: the note before it stays, and a search that needs the disk fails by itself.
    """
    size_bytes = folder.size_bytes(task.original)
    report = Report(
        original=Measurement(size_bytes=size_bytes),
        environment=describe(task.plan.threads),
        metric=advice.metric,
        advice=advice.model_dump(mode="json"),
    )
    staged = task.so_far.with_suffix(".part")
    try:
        staged.write_text(report.model_dump_json())
        staged.replace(task.so_far)
    except OSError as error:
        log.warning("what is known so far could not be noted", reason=str(error))
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def _outcome(execution: Execution, chosen: Path) -> Outcome:
    """With the chosen model at a place of the job's own: another job's tidying may remove the kept step as soon as this process ends."""
    if execution.chosen_folder is None:
        return Outcome(report=execution.report)
    shutil.copytree(execution.chosen_folder, chosen, copy_function=_link)
    return Outcome(report=execution.report, chosen_folder=chosen, chosen_signature=execution.chosen_signature, serving=execution.serving)


def _link(source: str, target: str) -> None:
    """A second name costs no space; where the file system has none, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def take_share(cores: Iterable[int], nice: int) -> None:
    """Binds this process and its children to `cores` and lowers its priority."""
    os.sched_setaffinity(0, set(cores))
    os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))  # raising it again needs a privilege
    # Where the kernel shares out time by session, a process's own priority counts among its own session's only.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice))


def die_with(service_pid: int) -> None:
    """Ties this process's life to its parent's, which may have ended already. Raises SystemExit then."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != service_pid:
        raise SystemExit("the service ended before its worker began")
