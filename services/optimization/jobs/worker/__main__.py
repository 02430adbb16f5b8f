"""`python -m services.optimization.jobs.worker FOLDER SERVICE_PID`: carries out one job.

Reads `FOLDER/task.json`, tells its progress as JSON lines on standard output, leaves `FOLDER/result.json`. It runs on its own
share of the cores at a lower priority, and dies with the service that started it.
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from hone.client import Client

from services.optimization.jobs.exhaustion import disk_is_full
from services.optimization.jobs.telling import Teller
from services.optimization.jobs.worker import DISK_FULL, RESULT, TASK, Task, die_with, perform, take_share
from services.optimization.remembered.link import Link


def _private_stdout() -> TextIO:
    """Standard output for the protocol alone: what libraries print goes to the log, where standard error goes."""
    private = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return private


@contextmanager
def _link(task: Task) -> Iterator[Link]:
    """Without retries: a cache is asked once."""
    if not task.cache:
        yield Link(None)
        return
    with Client(cache=task.cache, retries=False) as client:
        yield Link(client.cache, task.cache_ttl_s)


def _main(folder: Path, service_pid: int) -> None:
    die_with(service_pid)
    events = _private_stdout()
    task = Task.model_validate_json((folder / TASK).read_bytes())
    take_share(task.cores, task.nice)
    teller = Teller(events)
    try:
        with _link(task) as link:
            outcome = perform(task, teller, link)
        teller.close()
        staged = folder / f"{RESULT}.part"
        staged.write_text(outcome.model_dump_json())
        staged.replace(folder / RESULT)
    except Exception as error:
        if not disk_is_full(error):
            raise
        traceback.print_exc()
        raise SystemExit(DISK_FULL) from error


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
