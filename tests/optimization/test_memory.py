"""What the system tells of memory, read from trees of files as both kinds of control groups write them."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from services.optimization.jobs import memory

HUGE = "9223372036854771712"  # no limit, as version 1 writes it


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


UNIFIED = {"proc/self/cgroup": "0::/jobs\n"}
LEGACY = {"proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/box\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({**UNIFIED, "sys/fs/cgroup/jobs/memory.max": "max\n"}, None),
        ({**UNIFIED, "sys/fs/cgroup/jobs/memory.max": "4096\n"}, 4096),
        ({**UNIFIED, "sys/fs/cgroup/memory.max": "8192\n"}, 8192),  # a container's own group is its root
        ({**LEGACY, "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "4096\n"}, 4096),
        ({**LEGACY, "sys/fs/cgroup/memory/memory.limit_in_bytes": HUGE}, None),
    ],
)
def test_the_containers_limit_counts(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    assert memory.total_bytes(tree(tmp_path, files)) == (limit or psutil.virtual_memory().total)


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({}, 0),
        ({"proc/vmstat": "nr_free_pages 5\noom_kill 3\n"}, 3),
        ({**UNIFIED, "sys/fs/cgroup/jobs/memory.events": "low 0\noom 4\noom_kill 2\n", "proc/vmstat": "oom_kill 9\n"}, 2),
        ({**LEGACY, "sys/fs/cgroup/memory/box/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"}, 1),
    ],
)
def test_kills_for_want_of_memory_are_counted(tmp_path: Path, files: dict[str, str], kills: int) -> None:
    assert memory.oom_kills(tree(tmp_path, files)) == kills


def test_children_count_with_their_parent() -> None:
    """A process that holds little, with a child that holds 64 MiB."""
    child = "x = b'1' * (64 << 20); print(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        exact, resident = memory.exact_tree_bytes(process.pid), memory.tree_bytes(process.pid)
        process.communicate("\n")
    assert 64 << 20 <= exact <= resident
    assert memory.tree_bytes(process.pid) == memory.exact_tree_bytes(process.pid) == 0
