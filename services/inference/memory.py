"""How much memory there is, how much this process holds, and keeping its allocator from holding what nobody uses."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ARENA_VARIABLE = "MALLOC_ARENA_MAX"
_M_ARENA_MAX = -8  # of malloc.h


def total_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or the container's where that is limited to less."""
    machine = _PAGE_BYTES * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for path in _limit_files(root) if (text := _read(path).strip()).isdigit()]
    return min([machine, *limits])


def resident_bytes() -> int:
    """What this process and its children hold now: a backend may run in a child."""
    return sum(_resident_bytes(pid) for pid in _tree(os.getpid()))


def held_bytes() -> int:
    """`resident_bytes` without the heap that is free: what comes next would use it, and not show as growth."""
    give_back()
    return resident_bytes()


def give_back() -> None:
    """Returns freed heap to the system: glibc keeps what an unloaded model leaves behind."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have no such call
    if trim is not None:
        trim(0)


def bound_arenas(arenas: int) -> None:
    """Allows so many heaps in this process and in those that it starts; more only fragment, threads beyond the cores wait anyway.

    glibc allows eight for each core, and what one of them frees helps no other. To be called before threads are started. A bound
    that the environment sets (MALLOC_ARENA_MAX) holds instead.
    """
    if _ARENA_VARIABLE in os.environ:
        return
    os.environ[_ARENA_VARIABLE] = str(arenas)  # read when a process starts: of use to children only
    bound = getattr(ctypes.CDLL(None), "mallopt", None)
    if bound is not None:
        bound(_M_ARENA_MAX, arenas)


def _tree(pid: int) -> list[int]:
    children = [int(text) for path in Path(f"/proc/{pid}/task").glob("*/children") for text in _read(path).split()]
    return [pid, *(found for child in children for found in _tree(child))]


def _resident_bytes(pid: int) -> int:
    fields = _read(Path(f"/proc/{pid}/statm")).split()
    return int(fields[1]) * _PAGE_BYTES if fields else 0  # ended meanwhile


def _limit_files(root: Path) -> list[Path]:
    """Limits of this process's control group and of those above it, in the hierarchy of version 2 and in that of version 1."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0":
            found += _upwards(root / "sys/fs/cgroup", group, "memory.max")
        elif "memory" in controllers.split(","):
            found += _upwards(root / "sys/fs/cgroup/memory", group, "memory.limit_in_bytes")
    return found


def _upwards(hierarchy: Path, group: str, name: str) -> list[Path]:
    """A container sees its own group as the root, whatever its path is outside: what is not there is passed over."""
    folder = hierarchy / group.lstrip("/")
    return [each / name for each in (folder, *folder.parents) if each.is_relative_to(hierarchy)]


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""
