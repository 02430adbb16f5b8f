"""Every method on one real model in one job: size, latency, throughput, quality and time taken, beside the original's.

The model is MiniLM taught to tell which of six packages a sentence of documentation comes from; the job is an ordinary one.
"""

import argparse
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hone.cli.jobs import follow
from hone.cli.show import console, table
from hone.optimization.v1 import jobs_pb2 as pb
from hone.specs import StepLike, job_spec
from rich.console import Group

from benchmarks.origins import corpus, teacher
from benchmarks.suite import Suite, start_suite, stop_suite

FOLDER = Path(".hone/bench")
TAUGHT = 16_000  # sentences that the original is taught on
SHORT = {"epochs": 1, "max_steps": 60, "learning_rate": 2e-5, "max_tokens": 48}
HEAL = {"epochs": 1, "max_steps": 200, "learning_rate": 2e-4, "max_tokens": 48, "patience": 0}
LONG = {"epochs": 3, "learning_rate": 3e-4, "max_tokens": 48, "patience": 0}
LABELS = {"alpha": 0.7, "temperature": 2.0}
SMALL = {"layers": 1, "layer_choice": "first", "intermediate_size": 512}

RECIPES: Mapping[str, Sequence[StepLike]] = {
    "onnx": ["export_onnx"],
    "onnx-fused": [("export_onnx", {"optimize": True})],
    "torchscript": ["torchscript"],
    "aotinductor": ["aotinductor"],
    "openvino": ["openvino"],
    "int8-dynamic": ["export_onnx", "dynamic_int8"],
    "int8-minmax": ["export_onnx", "static_int8"],
    "int8-entropy": ["export_onnx", ("static_int8", {"calibration": "entropy"})],
    "int8-percentile": ["export_onnx", ("static_int8", {"calibration": "percentile"})],
    "int8-torch": ["torch_dynamic_int8"],
    "int8-qat": [("qat", {"training": SHORT, "losses": LABELS})],
    "int4": ["export_onnx", "int4_weight_only"],
    "fp16": ["fp16"],
    "fp16-onnx": ["export_onnx", "fp16"],
    "bf16": ["bf16"],
    "distill-3": [("distill", {"layers": 3, "training": HEAL, "losses": LABELS})],
    "prune-50": [("prune", {"heads": 0.5, "ffn": 0.5, "recovery": HEAL, "losses": LABELS})],
    "sparse-2-4": [("prune_weights", {"pattern": "2:4", "recovery": SHORT, "losses": LABELS})],
    "chain": [("distill", {**SMALL, "training": LONG, "losses": LABELS}), "export_onnx", "dynamic_int8"],
}
# Published rules of thumb: size, speed, points lost.
RULES = {"fp16": ("FP16", 0.5, 2.0, 1.0), "int8": ("INT8", 0.25, 4.0, 2.0), "int4": ("INT4", 0.125, 8.0, 5.0)}


@dataclass(frozen=True)
class Sizes:
    train: int
    held_out: int


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks methods", description=__doc__)
    parser.add_argument("--train", type=int, default=TAUGHT, help="sentences to train on")
    parser.add_argument("--held-out", type=int, default=2_000, help="sentences to judge by")
    parser.add_argument("--only", nargs="*", choices=RECIPES, default=list(RECIPES), help="these methods alone")
    parser.add_argument("--html", type=Path, default=FOLDER / "methods.html", help="where the report page goes")
    told = parser.parse_args(arguments)
    begun = time.monotonic()
    job, page = run({name: RECIPES[name] for name in told.only}, Sizes(told.train, told.held_out))
    told.html.write_text(page, encoding="utf-8")
    console.print(methods(job.report))
    console.print(rules(job.report))
    for candidate in job.report.candidates:
        console.print(f"[bold]{candidate.name}[/]: {candidate.reason}", highlight=False)
    environment = dict(job.report.environment)
    console.print(f"{environment['cpu_model']}, {environment['threads']:g} threads; {time.monotonic() - begun:.0f} s in all; {told.html}")


@contextmanager
def bench_suite(evaluation_s: int, name: str = "suite", *, fresh: bool = False) -> Iterator[Suite]:
    """All cores for jobs, and kept steps that the next run of this name finds again, unless `fresh`."""
    folder = FOLDER / name
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    cores = str(os.cpu_count() or 1)
    settings = {"JOB_CORES": cores, "EVALUATION_S": str(evaluation_s), "JOB_NICE": "0"}
    suite = start_suite(folder.resolve(), **{f"HONE_OPTIMIZATION_{name}": value for name, value in settings.items()})
    try:
        yield suite
    finally:
        stop_suite(suite)


def run(recipes: Mapping[str, Sequence[StepLike]], sizes: Sizes) -> tuple[pb.Job, str]:
    """The ended job and its page."""
    data = corpus(FOLDER)
    train, held_out = data.train[: sizes.train], data.held_out[: sizes.held_out]
    model = teacher(FOLDER, data.train[:TAUGHT])
    with bench_suite(evaluation_s=80) as suite, suite.client() as client:
        client.models.push(model, "origins", channels=["stable"])
        for name, pairs in (("train", train), ("held-out", held_out)):
            client.datasets.push([{"text": text, "label": label} for text, label in pairs], name)
        spec = job_spec("origins", recipes=recipes, evaluation="held-out", training="train", objective="throughput")
        console.print(f"{len(recipes)} methods, {len(train)} sentences to train on, {len(held_out)} to judge by", highlight=False)
        job = client.jobs.create(spec)
        follow(client, job.id)
        ended = client.jobs.get(job.id)
        if ended.HasField("failure"):
            raise SystemExit(f"the job failed: {ended.failure.message}")
        return ended, client.jobs.report_page(job.id)


def methods(report: pb.Report) -> Group:
    """One row a method, everything relative to the original; p50, p99 of one short row, throughput at its best batch."""
    rows: list[tuple[str, ...]] = [
        ("original", f"{report.original.size_bytes / 1e6:.1f} MB", *_speeds(report.original), _original(report), "", "")
    ]
    rows += [_row(candidate, report.original) for candidate in report.candidates]
    columns = ("method", "size", "p50", "p99", "throughput", "accuracy lost, points", "fidelity", "made in")
    return Group(table("Beside the original: size, p50 and p99 at 1 × 16, best rows per second", columns, rows))


def _original(report: pb.Report) -> str:
    quality = next((q for c in report.candidates for q in c.qualities), None)
    return "" if quality is None else f"{100 * quality.original.estimate:.2f} %"


def _best(measured: pb.Measurement) -> float:
    return max(workload.rows_per_second for workload in measured.workloads)


def _speeds(measured: pb.Measurement) -> tuple[str, str, str]:
    short = measured.workloads[0]
    return f"{short.p50_ms:.1f} ms", f"{short.p99_ms:.1f} ms", f"{_best(measured):.0f}/s"


def _row(candidate: pb.Candidate, original: pb.Measurement) -> tuple[str, ...]:
    if not candidate.HasField("measurement"):
        return (candidate.name, "infeasible", *[""] * 6)
    found, short, first = candidate.measurement, candidate.measurement.workloads[0], original.workloads[0]
    lost = next((quality.difference for quality in candidate.qualities), None)
    return (
        candidate.name,
        f"{found.size_bytes / original.size_bytes:.3f}x",
        f"{short.p50_ms / first.p50_ms:.2f}x",
        f"{short.p99_ms / first.p99_ms:.2f}x",
        f"{_best(found) / _best(original):.2f}x",
        "" if lost is None else f"{-100 * lost.estimate:+.2f} ({-100 * lost.high:+.2f} to {-100 * lost.low:+.2f})",
        f"{candidate.fidelity.estimate:.4f}",
        f"{candidate.optimization_seconds:.0f} s",
    )


def rules(report: pb.Report) -> Group:
    """What is published beside what was measured here."""
    rows = []
    for candidate in report.candidates:
        rule = RULES.get(candidate.name.partition("-")[0])
        if rule is None or not candidate.HasField("measurement"):
            continue
        kind, size, speed, drop = rule
        lost = next((f"{-100 * quality.difference.estimate:+.2f}" for quality in candidate.qualities), "")
        measured = candidate.measurement.size_bytes / report.original.size_bytes
        rows.append(
            (candidate.name, kind, f"{size:g}x / {measured:.3f}x", f"{speed:g}x / {candidate.speedup.estimate:.2f}x", f"{drop:g} / {lost}")
        )
    return Group(table("Published rule of thumb / measured here", ("method", "rule", "size", "speed", "points lost"), rows))
