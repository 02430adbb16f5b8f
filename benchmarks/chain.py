"""One chain against the PyTorch original: the same texts, the same threads, each with its own best batch, in turns."""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from hone.cli.jobs import follow
from hone.cli.show import console, table
from hone.optimization.v1 import jobs_pb2 as pb
from hone.specs import StepLike, job_spec

from benchmarks.methods import FOLDER, LABELS, TAUGHT, bench_suite
from benchmarks.origins import corpus, teacher
from benchmarks.suite import Suite
from services import backends
from services.optimization.examples import Examples
from services.optimization.rows import Batch, batches, prepare
from services.repository.manifest import Manifest

BATCHES = (8, 16, 32, 64, 128)
TRAINING = {"max_tokens": 48, "patience": 0, "validation_share": 0.02}
STUDENT = {**TRAINING, "epochs": 1, "learning_rate": 3e-4}
SMALL_STUDENT = {**TRAINING, "epochs": 8, "learning_rate": 5e-4}
CHAINS: Mapping[str, Sequence[StepLike]] = {
    "chain": [
        ("distill", {"layers": 1, "layer_choice": "first", "intermediate_size": 512, "training": SMALL_STUDENT, "losses": LABELS}),
        "export_onnx",
        "dynamic_int8",
    ],
    "student-3": [("distill", {"layers": 3, "training": STUDENT, "losses": LABELS})],
    "pruned-50": [("prune", {"heads": 0.5, "ffn": 0.5, "recovery": STUDENT, "losses": LABELS})],
}


@dataclass(frozen=True)
class Runner:
    """A loaded model with the texts as its batches, for every size of batch."""

    name: str
    backend: backends.Backend
    outputs: tuple[str, ...]
    batches: Mapping[int, Sequence[Batch]]

    def seconds(self, rows: int) -> float:
        begun = time.perf_counter()
        for batch in self.batches[rows]:
            self.backend.run(batch, self.outputs)
        return time.perf_counter() - begun


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks chain", description=__doc__)
    parser.add_argument("--train", type=int, default=1_000_000, help="sentences to train on")
    parser.add_argument("--held-out", type=int, default=6_000, help="sentences to judge by")
    parser.add_argument("--timed", type=int, default=512, help="sentences of a timed pass")
    parser.add_argument("--rounds", type=int, default=5, help="timed passes of each model at its best batch")
    parser.add_argument("--only", nargs="*", choices=CHAINS, default=list(CHAINS), help="these chains alone")
    told = parser.parse_args(arguments)
    data = corpus(FOLDER)
    train, held_out = data.train[: told.train], data.held_out[: told.held_out]
    model = teacher(FOLDER, data.train[:TAUGHT])
    with bench_suite(evaluation_s=20) as suite, suite.client() as client:
        client.models.push(model, "origins", channels=["stable"])
        for name, pairs in (("train", train), ("held-out", held_out)):
            client.datasets.push([{"text": text, "label": label} for text, label in pairs], name)
        jobs = {name: _run(suite, name) for name in told.only}
        _tell_accuracy(jobs)
        folders = {"original": "origins@1"} | {name: job.published for name, job in jobs.items() if job.published}
        _tell_throughput(suite, folders, [text for text, _ in held_out[: told.timed]], told.rounds)


def _run(suite: Suite, name: str) -> pb.Job:
    """Publishes whatever the chain made: what it lost and gained is told, not gated."""
    with suite.client() as client:
        spec = job_spec(
            "origins@1", recipes={name: CHAINS[name]}, evaluation="held-out", training="train", max_loss=1.0, min_gain=0, publish_as=name
        )
        job = client.jobs.create(spec)
        follow(client, job.id)
        return client.jobs.get(job.id)


def _tell_accuracy(jobs: Mapping[str, pb.Job]) -> None:
    rows = []
    for name, job in jobs.items():
        [candidate] = job.report.candidates
        if not candidate.qualities:
            console.print(f"{name}: {candidate.reason}", highlight=False)
            continue
        quality = candidate.qualities[0]
        lost = [-100 * value for value in (quality.difference.estimate, quality.difference.high, quality.difference.low)]
        kept = quality.candidate.estimate / quality.original.estimate
        rows.append(
            (
                name,
                f"{100 * quality.original.estimate:.2f} %",
                f"{100 * quality.candidate.estimate:.2f} %",
                f"{lost[0]:+.2f} ({lost[1]:+.2f} to {lost[2]:+.2f})",
                f"{quality.p_value:.2g}",
                f"{kept:.1%}",
                f"{candidate.size_ratio:.2f}x",
                f"{candidate.optimization_seconds:.0f} s",
            )
        )
    columns = ("chain", "original", "accuracy", "points lost, 95 %", "McNemar p", "kept", "smaller", "made in")
    console.print(table("Accuracy on held-out sentences, paired", columns, rows))


def _tell_throughput(suite: Suite, references: Mapping[str, str], texts: Sequence[str], rounds: int) -> None:
    runners = [_runner(name, suite, reference, texts) for name, reference in references.items()]
    best = {runner.name: min(BATCHES, key=runner.seconds) for runner in runners}
    seconds: dict[str, list[float]] = {runner.name: [] for runner in runners}
    for _ in range(rounds):
        for runner in runners:
            seconds[runner.name].append(runner.seconds(best[runner.name]))
    medians = {name: float(np.median(found)) for name, found in seconds.items()}
    ratios = {name: np.array(seconds["original"]) / np.array(found) for name, found in seconds.items()}
    rows = [
        (name, str(best[name]), f"{len(texts) / medians[name]:.0f}/s", f"{np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f})")
        for name, ratio in ratios.items()
    ]
    console.print(table("Throughput over real sentences, 2 threads, in turns", ("model", "best batch", "rows", "of the original"), rows))


def _runner(name: str, suite: Suite, reference: str, texts: Sequence[str]) -> Runner:
    model, _, version = reference.partition("@")
    folder = suite.folder / "repository" / "models" / model / version
    signature = Manifest.read(folder).signature
    rows = prepare(folder, signature, Examples(texts=tuple(texts)))
    fed = {size: [batch for _, batch in batches(rows, size)] for size in BATCHES}
    backend = backends.load(folder, signature, 2)
    return Runner(name, backend, tuple(spec.name for spec in signature.outputs), fed)
