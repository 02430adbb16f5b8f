"""Load time and memory of one model, measured in a fresh process that has nothing else in it.

Run as a module it is that process: it reads a request from stdin and writes a Footprint to stdout, both JSON.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import psutil
from pydantic import BaseModel

from services import backends
from services.optimization.failures import Toolchain
from services.optimization.rows import Batch
from services.repository.manifest import Frozen, Signature

TIMEOUT_SECONDS = 300
_ROOT = Path(__file__).parents[3]


class Footprint(Frozen):
    """Seconds to load after the engine is imported, and growth of resident memory over loading and one run of every batch."""

    load_seconds: float
    memory_bytes: int


class _Request(BaseModel):
    folder: Path
    signature: Signature
    threads: int
    names: tuple[str, ...]
    batches: tuple[Path, ...]  # one .npz each, the arrays in the order of the names


def measure(folder: Path, signature: Signature, threads: int, batches: Sequence[Batch]) -> Footprint:
    """Raises Toolchain when the process fails."""
    with tempfile.TemporaryDirectory() as written:
        names = tuple(spec.name for spec in signature.inputs)
        paths = tuple(Path(written, f"{index}.npz") for index in range(len(batches)))
        for path, batch in zip(paths, batches, strict=True):
            np.savez(path, *(batch[name] for name in names))  # by position: an input may be named as an argument of savez
        return _ask_child(_Request(folder=folder.resolve(), signature=signature, threads=threads, names=names, batches=paths))


def _ask_child(request: _Request) -> Footprint:
    command = [sys.executable, "-P", "-m", "services.optimization.evaluation.footprint"]
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    try:
        done = subprocess.run(  # noqa: S603  our own interpreter and module
            command, input=request.model_dump_json(), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment, check=True
        )
    except subprocess.CalledProcessError as error:
        raise Toolchain(f"measuring memory failed: {error.stderr.strip()[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise Toolchain(f"measuring memory took longer than {TIMEOUT_SECONDS} s") from error
    return Footprint.model_validate_json(done.stdout)


def _peak_bytes() -> int:
    """Highest resident memory of this program so far. Not ru_maxrss, which a new program inherits from its parent."""
    status = Path("/proc/self/status")
    if not status.exists():
        return int(psutil.Process().memory_info().rss)
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _measure_here(request: _Request) -> Footprint:
    # The engine itself is no part of the model: it is there before the first one and shared by all.
    import_module(backends.engine_module(request.signature.format))
    before_bytes, start = psutil.Process().memory_info().rss, time.perf_counter()
    model = backends.load(request.folder, request.signature, request.threads)
    load_seconds = time.perf_counter() - start
    outputs = [spec.name for spec in request.signature.outputs]
    for path in request.batches:
        with np.load(path, allow_pickle=False) as batch:
            model.run({name: batch[f"arr_{index}"] for index, name in enumerate(request.names)}, outputs)
    return Footprint(load_seconds=load_seconds, memory_bytes=max(0, _peak_bytes() - before_bytes))


if __name__ == "__main__":
    sys.stdout.write(_measure_here(_Request.model_validate_json(sys.stdin.read())).model_dump_json())
