"""A replica's name and folder: a living one's is left alone, a dead one's buried."""

import subprocess
import sys
from pathlib import Path

import psutil

from services.optimization.jobs.processes import MARK
from services.optimization.jobs.replica import Replica

# Becomes a replica, starts a process for a job in a session of its own, tells both, and waits to be killed.
LIVING = f"""
import os, subprocess, sys
from pathlib import Path
from services.optimization.jobs.replica import Replica
replica = Replica(Path(sys.argv[1]))
(replica.folder / "job").mkdir()
sleeper = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
marked = {{**os.environ, "{MARK}": str(replica.folder / "job")}}
started = subprocess.Popen(sleeper, env=marked, stdout=subprocess.PIPE, start_new_session=True)
started.stdout.readline()  # before it runs, the kernel does not show its environment
print(replica.id, started.pid, flush=True)
sys.stdin.read()
"""


def test_a_living_replica_is_left_alone_and_a_dead_one_buried_with_its_processes(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LIVING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        name, pid = process.stdout.readline().split()
        left = psutil.Process(int(pid))
        beside = Replica(tmp_path)
        assert beside.predecessors == ()
        assert (tmp_path / name / "job").is_dir()
        process.kill()
        process.wait()
    assert left.is_running()
    heir = Replica(tmp_path)
    assert heir.predecessors == (name,)
    assert len({name, beside.id, heir.id}) == 3
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
    heir.close()
    beside.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_replicas_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    replica = Replica(tmp_path)
    assert replica.predecessors == ()
    replica.close()
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
