"""`python -m benchmarks loop`: what the advisor predicts beside what the running service then does, and a rollout from start to end.

A search publishes to `canary`. Then the suite's own inference service serves original
and advised version in turns to a load generator in a process of its own, which shares no code with the advisor's player. Then the version
is rolled out through `stable`, promoted by its figures, and a broken version after it is taken out by the guardrails.
"""

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hone import rollout, rollout_status
from hone.cli.jobs import follow
from hone.cli.rollout import figures_table, status_tables
from hone.cli.show import console
from hone.client import Client
from hone.optimization.v1 import advisor_pb2, goals_pb2
from hone.optimization.v1 import jobs_pb2 as pb
from hone.repository.v1 import models_pb2
from hone.rollout_figures import Figure
from hone.rollout_status import Decision, Status
from hone.specs import goal, job_spec

from benchmarks import load
from benchmarks.methods import FOLDER, TAUGHT, bench_suite
from benchmarks.origins import corpus, teacher
from benchmarks.suite import Suite

MODEL = "loop"
USERS = 500
JUDGED_CALLS = 30  # of the broken version, before guardrails judge it
WARM_S = 2.0  # longer than a request waits behind all others: a queue that still fills would make a slow version look fast
TURN_TEXTS = 20_000  # more than a turn can ask for: none is asked twice in it
HEAD = "classifier.weight"


def main(arguments: Sequence[str]) -> None:
    options = _options(arguments)
    data = corpus(FOLDER)
    held_out = data.held_out[: options.held_out]
    with bench_suite(options.evaluation_s, options.suite) as suite, suite.client() as client:
        original = teacher(FOLDER, data.train[:TAUGHT])
        pushed = client.models.push(original, MODEL, channels=["stable"])
        console.rule("a goal, and what is predicted")
        for name, pairs in (("train", data.train[: options.train]), ("held-out", held_out)):
            if pairs:
                client.datasets.push([{"text": text, "label": label} for text, label in pairs], name)
        job = _advised(client, f"{MODEL}@{pushed.version}", options)
        wanted = rollout.prediction(job, client.advisor.get(job.id))
        caller = Caller(suite, [text for text, _ in held_out], options)
        console.rule(f"serving {options.rounds} turns of {options.seconds:g} s each to {options.callers} callers")
        console.print(figures_table(_compared(client, caller, wanted, client.advisor.get(job.id), options.rounds), "Predicted and served"))
        console.rule("rolling it out to half of the users")
        _roll_out(client, caller, job, options)
        console.rule("a broken version after it")
        _take_out(client, caller, wanted, original)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks loop", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=8.0, help="of the search")
    parser.add_argument("--evaluation-s", type=int, default=30, help="of measuring what the search found")
    parser.add_argument("--train", type=int, default=0, help="sentences that smaller models may learn from; none: precisions alone")
    parser.add_argument("--min-served-speedup", type=float, help="what the search is to reach; without it, the most in its time")
    parser.add_argument("--suite", default="loop", help="whose kept steps are used: advisor has trained a student already")
    parser.add_argument("--max-loss", type=float, default=0.01)
    parser.add_argument("--held-out", type=int, default=2_000, help="sentences to judge by, and to ask")
    parser.add_argument("--rows-per-request", type=int, default=8)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8, help="turns of each version")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn")
    parser.add_argument("--enough", type=int, default=500, help="calls of each arm before the rollout is decided")
    parser.add_argument("--most-seconds", type=float, default=180.0, help="that a rollout may take to be decided")
    return parser.parse_args(arguments)


def _advised(client: Client, source: str, options: argparse.Namespace) -> pb.Job:
    traffic = goals_pb2.Traffic(request_rows=[options.rows_per_request], callers=options.callers)
    spec = job_spec(
        source,
        evaluation="held-out",
        training="train" if options.train else None,
        goal=goal("throughput", min_served_speedup=options.min_served_speedup, max_loss=options.max_loss, traffic=traffic),
        channels=["canary"],
        budget_seconds=60 * options.minutes,
    )
    job = client.advisor.recommend(spec)
    follow(client, job.id)
    ended = client.jobs.get(job.id)
    if not ended.published:
        raise SystemExit(f"nothing was published: {ended.failure.message or [c.reason for c in ended.report.candidates]}")
    console.print(f"{ended.published}: {ended.report.chosen}", highlight=False)
    return ended


@dataclass
class Caller:
    """Callers in a process of their own, who ask for other texts at every turn, so that no answer can be remembered."""

    suite: Suite
    texts: Sequence[str]
    options: argparse.Namespace
    turns: int = 0

    def ask(self, model: str, *, users: int = 0) -> load.Load:
        """One turn."""
        self.turns += 1
        plan = load.Plan(
            self.suite.addresses["inference"],
            model,
            list(_reworded(self.texts, TURN_TEXTS, self.turns)),
            self.options.callers,
            self.options.seconds,
            warm_s=WARM_S,
            rows=self.options.rows_per_request,
            method="Classify",
            users=users,
        )
        return load.run(plan)


def _reworded(texts: Sequence[str], count: int, seed: int) -> Iterator[str]:
    """The texts again and again, their words in another order each time: as long, and none like another."""
    draw = random.Random(seed)
    for index in range(count):
        words = texts[index % len(texts)].split()
        draw.shuffle(words)
        yield " ".join(words)


@dataclass
class Seen:
    """What one version's turns saw."""

    rows_per_second: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    unanswered: int = 0

    def add(self, found: load.Load, rows: int) -> None:
        self.rows_per_second.append(found.per_second * rows)
        self.latencies_s += found.latencies_s
        self.unanswered += found.refused + found.late + found.failed

    @property
    def median_rows(self) -> float:
        return statistics.median(self.rows_per_second)

    def ms(self, share: float) -> float:
        """Of all turns' requests together."""
        return 1e3 * load.percentile(sorted(self.latencies_s), share)


def _compared(client: Client, caller: Caller, wanted: rollout.Prediction, found: advisor_pb2.Recommendation, rounds: int) -> list[Figure]:
    """Both versions in turns; every other round goes backwards."""
    versions = {wanted.source_version: Seen(), wanted.version: Seen()}
    for reference in (f"{MODEL}:stable", f"{MODEL}:canary"):
        client.wait_until_served(reference)
    for number in range(rounds):
        for version in sorted(versions, reverse=bool(number % 2)):
            versions[version].add(caller.ask(f"{MODEL}@{version}"), caller.options.rows_per_request)
    unanswered = sum(seen.unanswered for seen in versions.values())
    console.print(f"{unanswered} requests were not answered", highlight=False)
    predicted, served = found.serving, (versions[wanted.source_version], versions[wanted.version])
    return [
        *_figures("original", predicted.original, served[0]),
        *_figures("advised", predicted.chosen, served[1]),
        Figure("speed-up, rows per second", "x", predicted.speedup.estimate, served[1].median_rows / served[0].median_rows),
        Figure("speed-up, p50", "x", predicted.original.p50_ms / predicted.chosen.p50_ms, served[0].ms(0.5) / served[1].ms(0.5)),
        Figure("speed-up, p99", "x", predicted.original.p99_ms / predicted.chosen.p99_ms, served[0].ms(0.99) / served[1].ms(0.99)),
    ]


def _figures(name: str, predicted: advisor_pb2.Served, served: Seen) -> Iterator[Figure]:
    yield Figure(f"{name}, rows per second", "/s", predicted.rows_per_second.estimate, served.median_rows)
    yield Figure(f"{name}, p50", "ms", predicted.p50_ms, served.ms(0.5))
    yield Figure(f"{name}, p99", "ms", predicted.p99_ms, served.ms(0.99))


def _roll_out(client: Client, caller: Caller, job: pb.Job, options: argparse.Namespace) -> None:
    """Raises SystemExit where the figures do not speak for the version, or the channel does not move."""
    client.rollouts.start(job.id, share=0.5)
    found = _until(
        caller, lambda: client.rollouts.status(job.id, enough_calls=options.enough), lambda now: now.decision is not Decision.WAIT
    )
    console.print(status_tables(found))
    if found.decision is not Decision.PROMOTE:
        raise SystemExit(f"it was not to be promoted: {found.reason}")
    version = client.rollouts.promote(job.id)
    if client.models.get(MODEL).version != version.version or f"{MODEL}@{version.version}" != job.published:
        raise SystemExit(f"stable is version {client.models.get(MODEL).version}, and {job.published} was promoted")
    console.print(f"{MODEL}:stable is version {version.version} now", highlight=False)


def _until(caller: Caller, look: Callable[[], Status], is_over: Callable[[Status], bool]) -> Status:
    """Users call through the channel until it is over, or the time is; the last status."""
    end = time.monotonic() + caller.options.most_seconds
    while not is_over(found := look()) and time.monotonic() < end:
        caller.ask(MODEL, users=USERS)
    return found


def _take_out(client: Client, caller: Caller, wanted: rollout.Prediction, original: Path) -> None:
    """A version that answers wrongly, tried as if it were the advised one. Raises SystemExit where no guardrail stops it."""
    with tempfile.TemporaryDirectory(prefix="hone-") as folder:
        broken = replace(wanted, job_id="broken", version=_push_broken(client, original, Path(folder)).version)
    control = client.models.get(MODEL)
    early = models_pb2.Guardrails(min_calls=JUDGED_CALLS)
    made = rollout.split(broken, control, rollout.CHANNEL, models_pb2.Traffic(), share=0.5, shadow=1.0, guardrails=early)
    running = client.models.set_traffic(MODEL, made)
    found = _until(
        caller, lambda: rollout_status.status(broken, control, running, client.rollouts.counted(MODEL)), lambda now: bool(_taken_out(now))
    )
    console.print(status_tables(found))
    if found.decision is not Decision.ROLL_BACK or not _taken_out(found):
        raise SystemExit(f"no guardrail took the broken version out: {found.reason}")
    client.models.clear_traffic(MODEL)
    if client.models.get(MODEL).version != control.version:
        raise SystemExit("the channel has moved")
    console.print(f"{MODEL}:stable is version {control.version} still, and answers all calls", highlight=False)


def _taken_out(status: Status) -> str:
    """Which guardrail did it; empty where none has."""
    return next((arm.taken_out for arm in status.found.arms if arm.taken_out), "") if status.found is not None else ""


def _push_broken(client: Client, original: Path, folder: Path) -> models_pb2.ModelVersion:
    """The original with its head turned round: as fast, and the least probable label is told for the most probable one."""
    from safetensors.numpy import load_file, save_file

    made = shutil.copytree(original, folder / "broken", ignore=shutil.ignore_patterns(".*"))
    weights: dict[str, Any] = load_file(made / "model.safetensors")
    save_file(weights | {HEAD: -weights[HEAD]}, made / "model.safetensors", {"format": "pt"})
    return client.models.push(made, MODEL)
