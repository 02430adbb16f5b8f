"""The engine alone: `python -m benchmarks.raw_engine` reads a plan, runs ready-made batches, prints what that took.

No server, no wire, no tokenization: what the same backend does with the same instances and threads when somebody hands it
length-sorted batches.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from services import backends
from services.backends.text import pad, read_tokenizer
from services.inference.layout import Values
from services.repository.manifest import Manifest


@dataclass(frozen=True)
class Plan:
    folder: str
    texts: list[str]
    batch_rows: int
    instances: int
    threads: int
    seconds: float


@dataclass(frozen=True)
class Raw:
    """`p50_ms` is of one batch."""

    per_second: float
    p50_ms: float


def run(plan: Plan) -> Raw:
    """Runs a plan in a child process. Raises subprocess.CalledProcessError."""
    command = [sys.executable, "-m", "benchmarks.raw_engine"]
    done = subprocess.run(command, input=json.dumps(asdict(plan)), stdout=subprocess.PIPE, text=True, check=True)
    return Raw(**json.loads(done.stdout))


def _batches(plan: Plan, manifest: Manifest) -> list[Values]:
    tokenizer = read_tokenizer(Path(plan.folder))
    rows = sorted((np.array(encoding.ids, np.int64) for encoding in tokenizer.encode_batch(plan.texts)), key=len)
    return [pad(rows[start : start + plan.batch_rows], manifest.signature) for start in range(0, len(rows), plan.batch_rows)]


def _measured(plan: Plan) -> Raw:
    manifest = Manifest.read(Path(plan.folder))
    backend = backends.load(Path(plan.folder), manifest.signature, plan.threads)
    batches = _batches(plan, manifest)
    outputs = [spec.name for spec in manifest.signature.outputs]
    for batch in batches[:4]:
        backend.run(batch, outputs)

    def work(mine: Sequence[Values]) -> tuple[float, list[float]]:
        """Rows per second and each batch's seconds. Whole passes over its share, so that every length counts as often as it comes."""
        begun, rows, seconds = time.monotonic(), 0, []
        while time.monotonic() - begun < plan.seconds:
            for batch in mine:
                started = time.monotonic()
                backend.run(batch, outputs)
                seconds.append(time.monotonic() - started)
                rows += len(batch["input_ids"])
        return rows / (time.monotonic() - begun), seconds

    with ThreadPoolExecutor(plan.instances) as pool:
        shares = [batches[start :: plan.instances] for start in range(plan.instances)]
        found = list(pool.map(work, shares))
    return Raw(sum(rate for rate, _ in found), 1e3 * statistics.median(second for _, seconds in found for second in seconds))


if __name__ == "__main__":
    print(json.dumps(asdict(_measured(Plan(**json.load(sys.stdin))))))
