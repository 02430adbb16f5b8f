"""Parsing what strangers send: a module of ours run as a child process with limits, which answers one JSON object."""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CPU_SECONDS = 120
WALL_SECONDS = 180
OPEN_FILES = 256
FILE_BYTES = 64 << 10  # a library that probes for a temporary folder writes a few bytes
_ROOT = Path(__file__).parents[3]


class NoAnswer(Exception):
    """The child ended without an answer, by a limit or a fault; the text says what is known."""


def ask(module: str, *arguments: str) -> dict[str, Any]:
    """What `python -m module arguments…` writes to its standard output. Raises NoAnswer."""
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(  # noqa: S603  our own interpreter and module
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=WALL_SECONDS,
                env=_environment() | {"HOME": empty, "TMPDIR": empty},
                cwd=empty,
            )
        except subprocess.TimeoutExpired as error:
            raise NoAnswer(f"parsing took longer than {WALL_SECONDS} s") from error
    if done.returncode != 0 or not done.stdout:
        raise NoAnswer(f"parsing ended without an answer, as broken files or ones past the limits make it: {_last_line(done)}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def limit_self(address_space_bytes: int) -> None:
    """For the child, before it opens anything: every limit is final.

    The address space is more than memory: torch alone reserves several GB of it.
    """
    for kind, most in (
        (resource.RLIMIT_AS, address_space_bytes),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _environment() -> dict[str, str]:
    """Nothing of ours but the path: no credentials, no proxies, no hub."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    # Arrow's own allocator reserves address space far beyond what it uses.
    return kept | quiet | {"ARROW_DEFAULT_MEMORY_POOL": "system", "PYTHONPATH": str(_ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def _last_line(done: "subprocess.CompletedProcess[bytes]") -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"
