"""Finding and ending every process of a job, those too that left its process group or outlived their parent."""

from contextlib import suppress
from pathlib import Path

import psutil

MARK = "HONE_JOB_FOLDER"  # in the environment of a worker, and so of everything that it starts
_KILL_S = 10.0


def kill_marked(folder: Path) -> None:
    """Kills every process of this user that was started to work in or below `folder`, and waits until they have ended."""
    found = [process for process in psutil.process_iter() if _is_marked(process, folder)]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=_KILL_S)


def _is_marked(process: psutil.Process, folder: Path) -> bool:
    """A process of somebody else does not show its environment, and is none of ours."""
    with suppress(psutil.Error, OSError):
        marked = process.environ().get(MARK)
        return marked is not None and Path(marked).is_relative_to(folder)
    return False
