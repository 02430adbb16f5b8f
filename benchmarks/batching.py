"""`python -m benchmarks batching`: one engine on one model, with the rows of a mixed queue put together in three ways.

No server and no wire: a closed loop of callers submits rows of token ids to the engine of the service, in this process. What
the tokens are does not change a batch's time, so they are drawn at random; how many they are is what is compared.
"""

import argparse
import asyncio
import json
import math
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from hone.cli.show import console, table
from prometheus_client import CollectorRegistry

from benchmarks.lengths import LONGEST, MEDIAN, SHORTEST
from benchmarks.load import percentile
from benchmarks.serving import RECIPES, make_version
from benchmarks.suite import running_suite
from services import backends
from services.backends.lent import Shelf
from services.inference.engine import Engine
from services.inference.layout import layout_of
from services.inference.metrics import Metrics
from services.inference.rows import IDS
from services.inference.service_time import ServiceTime
from services.inference.settings import Batching, InferenceSettings
from services.inference.tickets import Item
from services.repository.manifest import Manifest

POLICIES = (Batching.LENGTH_AWARE, Batching.FIRST_COME, Batching.FIXED_BUCKETS)
LONG = (96, 256)
LONG_SHARE = 0.2  # of a bimodal mix
WARM_S = 0.5
VOCABULARY = 1000  # any model has these tokens
COLUMNS = (
    "lengths",
    "batching",
    "rows/s",
    "of first\ncome",
    "of fixed\nbuckets",
    "real\ntokens/s",
    "padding",
    "rows of\na batch",
    "p50\nms",
    "p99\nms",
)


def _short(draw: random.Random) -> int:
    return min(LONGEST, max(SHORTEST, round(MEDIAN * draw.lognormvariate(0.0, 0.6))))


def _long(draw: random.Random) -> int:
    return draw.randint(*LONG)


def _bimodal(draw: random.Random) -> int:
    return _long(draw) if draw.random() < LONG_SHARE else _short(draw)


MIXES: Mapping[str, Callable[[random.Random], int]] = {"short": _short, "long": _long, "bimodal": _bimodal}


@dataclass(frozen=True)
class Turn:
    """What the callers of one policy saw in one turn."""

    rows_per_second: float
    tokens_per_second: float
    padding: float  # share of the computed tokens
    batch_rows: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Bench:
    """A loaded model, and how every turn is run."""

    manifest: Manifest
    shelf: Shelf
    instances: int
    callers: int
    seconds: float
    learned: Mapping[tuple[str, Batching], ServiceTime]

    async def turn(self, mix: str, batching: Batching, lengths: Sequence[int]) -> Turn:
        """A fresh engine over the same weights, that knows the service times of its turns before."""
        engine = Engine(
            [self.shelf.lend() for _ in range(self.instances)],
            layout_of(self.manifest.signature),
            InferenceSettings(batching=batching).policy,
            name=self.manifest.name,
            version=self.manifest.version,
            metrics=Metrics(CollectorRegistry()),
            service_time=self.learned[mix, batching],
        )
        try:
            return await _load(engine, self._items(lengths), self.callers, self.seconds)
        finally:
            await engine.close()

    def _items(self, lengths: Sequence[int]) -> list[Item]:
        draw = np.random.default_rng(0)
        outputs = tuple(spec.name for spec in self.manifest.signature.outputs)
        return [Item({IDS: draw.integers(1, VOCABULARY, length)}, outputs) for length in lengths]


async def _load(engine: Engine, items: Sequence[Item], callers: int, seconds: float) -> Turn:
    """Callers that each submit one row after the other; what the warm-up did is not counted."""
    latencies: list[float] = []
    begin = time.monotonic() + WARM_S
    end = begin + seconds
    turns = cycle(items)

    async def caller() -> None:
        while (sent := time.monotonic()) < end:
            await engine.submit([next(turns)], 0, math.inf).answers()
            if sent >= begin:
                latencies.append(time.monotonic() - sent)

    tasks = [asyncio.create_task(caller()) for _ in range(callers)]
    await asyncio.sleep(WARM_S)
    before = _counted(engine)
    begun = time.monotonic()
    await asyncio.gather(*tasks)
    passed = time.monotonic() - begun
    batches, rows, real, padded = _counted(engine) - before
    latencies.sort()
    p50, p99 = (1e3 * percentile(latencies, share) for share in (0.5, 0.99))
    if not batches:
        raise RuntimeError(f"no batch began within {seconds:g} s: measure for longer")
    return Turn(rows / passed, real / passed, 1 - real / padded, rows / batches, p50, p99)


def _counted(engine: Engine) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    counted = engine.statistics
    return np.array([counted.batches, counted.batch_rows, counted.real_tokens, counted.padded_tokens], np.float64)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks batching", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load per policy, mix and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--recipe", choices=RECIPES, default="int8", help="which version of MiniLM is run")
    parser.add_argument("--folder", type=Path, help="a sealed version of a text model to run instead")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hone-") as scratch:
        folder = options.folder or _make(Path(scratch) / "version", options.recipe)
        found = asyncio.run(_measure(options, folder))
    _show(options, found)


def _make(folder: Path, recipe: str) -> Path:
    """A copy of the version, so that the services that made it are gone when it is measured."""
    with running_suite(HONE_OPTIMIZATION_EVALUATION_S="2") as suite:
        return Path(shutil.copytree(make_version(suite, recipe), folder))


async def _measure(options: argparse.Namespace, folder: Path) -> dict[tuple[str, Batching], list[Turn]]:
    """The policies in turns, so that what the machine does meanwhile hits all alike; each turn begins with another one."""
    bench = _bench(options, Manifest.read(folder), folder)
    kept = bench.shelf.lend()  # the weights stay while no engine holds them
    found: dict[tuple[str, Batching], list[Turn]] = defaultdict(list)
    for number in range(options.rounds):
        console.print(f"round {number + 1} of {options.rounds}", highlight=False)
        first = number % len(POLICIES)
        for mix in options.mixes:
            draw = random.Random(number)
            lengths = [MIXES[mix](draw) for _ in range(4096)]
            for batching in POLICIES[first:] + POLICIES[:first]:
                found[mix, batching].append(await bench.turn(mix, batching, lengths))
    kept.close()
    return found


def _bench(options: argparse.Namespace, manifest: Manifest, folder: Path) -> Bench:
    parallelism = InferenceSettings().parallelism
    backend = backends.load(folder, manifest.signature, parallelism.threads, parallelism.instances)
    console.print(f"{manifest.reference} on {backend.name}, {parallelism}, {options.callers} callers", highlight=False)
    learned: dict[tuple[str, Batching], ServiceTime] = defaultdict(ServiceTime)
    return Bench(manifest, Shelf(backend), parallelism.instances, options.callers, options.seconds, learned)


def _show(options: argparse.Namespace, found: Mapping[tuple[str, Batching], Sequence[Turn]]) -> None:
    """Medians over the rounds."""
    medians = {cell: _median(turns) for cell, turns in found.items()}
    rows = []
    for mix in options.mixes:
        for batching in POLICIES:
            own = medians[mix, batching]
            ratios = (own.rows_per_second / medians[mix, other].rows_per_second for other in POLICIES[1:])
            rows.append((mix, batching.value, f"{own.rows_per_second:.0f}", *(f"{ratio:.2f}" for ratio in ratios), *_figures(own)))
    console.print(table("MiniLM in the engine, without a server", COLUMNS, rows))
    if options.json:
        told = [{"mix": mix, "batching": batching, **asdict(turn)} for (mix, batching), turns in found.items() for turn in turns]
        options.json.write_text(json.dumps(told, indent=1))


def _median(turns: Sequence[Turn]) -> Turn:
    return Turn(*(statistics.median(values) for values in zip(*map(astuple, turns), strict=True)))


def _figures(turn: Turn) -> tuple[str, ...]:
    return (
        f"{turn.tokens_per_second:.0f}",
        f"{turn.padding:.0%}",
        f"{turn.batch_rows:.1f}",
        f"{turn.p50_ms:.1f}",
        f"{turn.p99_ms:.1f}",
    )
