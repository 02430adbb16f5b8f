"""`python -m benchmarks advisor`: a goal, and nothing else, on a real classification task: what the search finds in its time."""

import argparse
import time
from collections.abc import Sequence

import typer
from hone.cli.advise import tell
from hone.cli.jobs import follow
from hone.cli.show import console
from hone.client import Client
from hone.optimization.v1 import goals_pb2
from hone.optimization.v1 import jobs_pb2 as pb
from hone.specs import goal, job_spec

from benchmarks.methods import FOLDER, TAUGHT, bench_suite
from benchmarks.origins import corpus, teacher

# An example of what only the user knows, so that the page has a chapter on money.
ECONOMICS = goals_pb2.Economics(
    instance_hour_price=0.40, peak_rows_per_second=2_000, rows_per_month=1e9, monthly_growth=0.03, hours=24, hourly_rate=90
)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks advisor", description=__doc__)
    parser.add_argument("--scenario", default="throughput", choices=("latency", "throughput", "resource"))
    parser.add_argument("--min-served-speedup", type=float, default=6.0)
    parser.add_argument("--max-loss", type=float, default=0.01)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rows-per-request", type=int, default=8)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--train", type=int, default=1_000_000, help="sentences that smaller models may learn from")
    parser.add_argument("--held-out", type=int, default=4_000, help="sentences to judge by")
    parser.add_argument("--again", action="store_true", help="with what the last run has kept: no longer a fair measure of its time")
    options = parser.parse_args(arguments)
    data = corpus(FOLDER)
    train, held_out = data.train[: options.train], data.held_out[: options.held_out]
    model = teacher(FOLDER, data.train[:TAUGHT])
    with bench_suite(60, "advisor", fresh=not options.again) as suite, suite.client() as client:
        client.models.push(model, "origins", channels=["stable"])
        for name, pairs in (("train", train), ("held-out", held_out)):
            client.datasets.push([{"text": text, "label": label} for text, label in pairs], name)
        console.print(f"{len(train)} sentences to train on, {len(held_out)} to judge by", highlight=False)
        begun = time.monotonic()
        job = client.advisor.recommend(_spec(options))
        follow(client, job.id)
        console.print(f"{time.monotonic() - begun:.0f} s in all", highlight=False)
        _conclude(client, client.jobs.get(job.id))


def _spec(options: argparse.Namespace) -> pb.JobSpec:
    return job_spec(
        "origins@1",
        evaluation="held-out",
        training="train",
        goal=goal(
            options.scenario,
            min_served_speedup=options.min_served_speedup,
            max_loss=options.max_loss,
            traffic=goals_pb2.Traffic(request_rows=[options.rows_per_request], callers=options.callers),
            economics=ECONOMICS,
        ),
        channels=["canary"],
        budget_seconds=60 * options.minutes,
    )


def _conclude(client: Client, job: pb.Job) -> None:
    page = FOLDER / "advisor.html"
    page.write_text(client.jobs.report_page(job.id), encoding="utf-8")
    console.print(f"the page: {page}", highlight=False)
    try:
        tell(client, job)
    except typer.Exit as exit_:
        raise SystemExit(exit_.exit_code) from None
