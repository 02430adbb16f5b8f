"""How much memory there is, how much a process with its children holds, and whether the system ran out of it."""

from contextlib import suppress
from pathlib import Path

import psutil

_NO_PROCESS = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def total_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or the container's where that is limited to less."""
    limits = [int(text) for path in _group_files(root, "memory.max", "memory.limit_in_bytes") if (text := _read(path).strip()).isdigit()]
    return min([int(psutil.virtual_memory().total), *limits])


def tree_bytes(pid: int) -> int:
    """Memory of a process with all its descendants; 0 when it has ended.

    Resident sizes are cheap to read, and count a page once for every process that maps it. So only a caller who finds the sum
    too large asks for `exact_tree_bytes`.
    """
    return sum(_resident_bytes(process) for process in _tree(pid))


def exact_tree_bytes(pid: int) -> int:
    """As `tree_bytes`, with a page that several processes map shared out among them. Walks the page tables: slow for gigabytes."""
    return sum(_proportional_bytes(process) for process in _tree(pid))


def oom_kills(root: Path = Path("/")) -> int:
    """How often the system has killed for want of memory: in this container where that is told, else on this machine."""
    for path in (*_group_files(root, "memory.events", "memory.oom_control"), root / "proc/vmstat"):
        for line in _read(path).splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.strip().isdigit():
                return int(value)
    return 0


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(*_NO_PROCESS):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _resident_bytes(process: psutil.Process) -> int:
    with suppress(*_NO_PROCESS):
        return int(process.memory_info().rss)
    return 0


def _proportional_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:  # a zombie too
        return 0
    except psutil.AccessDenied:
        return _resident_bytes(process)


def _group_files(root: Path, unified: str, legacy: str) -> list[Path]:
    """This process's control group's files of one meaning, in the hierarchy of version 2 and that of version 1, if there."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0":
            found.append(root / "sys/fs/cgroup" / group.lstrip("/") / unified)
        elif "memory" in controllers.split(","):
            found.append(root / "sys/fs/cgroup/memory" / group.lstrip("/") / legacy)
    # A container sees its own group as the root of the hierarchy, whatever its path is outside.
    found += [root / "sys/fs/cgroup" / unified, root / "sys/fs/cgroup/memory" / legacy]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""
