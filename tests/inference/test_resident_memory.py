"""How much memory there is, by the files that the system tells it in, and how much this process holds."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from services.inference.memory import held_bytes, resident_bytes, total_bytes

MACHINE = total_bytes(Path("/nowhere"))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, MACHINE),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, MACHINE),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "1000\n"}, 1000),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "900\n", "sys/fs/cgroup/a/memory.max": "1000\n"}, 900),
        ({"proc/self/cgroup": "0::/outside\n", "sys/fs/cgroup/memory.max": "800\n"}, 800),
        ({"proc/self/cgroup": "4:cpu,memory:/x\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "700\n"}, 700),
        ({"proc/self/cgroup": "4:cpu:/x\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "700\n"}, MACHINE),
    ],
    ids=["no files", "no limit", "a limit above", "the narrowest", "a container's own root", "version 1", "another controller"],
)
def test_the_narrowest_limit_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert total_bytes(write(tmp_path, files)) == expected


def test_what_the_process_holds_grows_and_is_given_back() -> None:
    size, before = 64 << 20, held_bytes()
    block = np.ones(size, np.uint8)
    assert before < resident_bytes() - size * 0.9 < MACHINE
    del block
    assert held_bytes() < before + size * 0.5


ARENAS = """
import ctypes, sys, threading
from services.inference.memory import bound_arenas
if sys.argv[1] == "bounded":
    bound_arenas(2)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(16)
def hold():
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=hold) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.parametrize(("how", "environment", "most"), [("bounded", {}, 2), ("free", {}, 64), ("bounded", {"MALLOC_ARENA_MAX": "4"}, 4)])
def test_threads_share_bounded_arenas(tmp_path: Path, how: str, environment: dict[str, str], most: int) -> None:
    told = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | environment
    subprocess.run([sys.executable, "-c", ARENAS, how, tmp_path / "info.xml"], env=told, check=True)
    arenas = (tmp_path / "info.xml").read_text().count("<heap nr=")
    assert most / 2 < arenas <= most or (how == "free" and arenas > 4)
