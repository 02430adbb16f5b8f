"""`python -m benchmarks advisor`: a goal, and nothing else, on a real classification task: what the search finds in its time."""

import argparse
from collections.abc import Sequence

from hone.cli.advise import tell
from hone.cli.jobs import follow
from hone.cli.show import console
from hone.specs import goal, job_spec

from benchmarks.methods import FOLDER, TAUGHT, bench_suite
from benchmarks.origins import corpus, teacher


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks advisor", description=__doc__)
    parser.add_argument("--scenario", default="throughput", choices=("latency", "throughput", "resource"))
    parser.add_argument("--min-served-speedup", type=float, default=6.0)
    parser.add_argument("--max-loss", type=float, default=0.01)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--train", type=int, default=1_000_000, help="sentences that smaller models may learn from")
    parser.add_argument("--held-out", type=int, default=4_000, help="sentences to judge by")
    options = parser.parse_args(arguments)
    data = corpus(FOLDER)
    train, held_out = data.train[: options.train], data.held_out[: options.held_out]
    model = teacher(FOLDER, data.train[:TAUGHT])
    with bench_suite(evaluation_s=60) as suite, suite.client() as client:
        client.models.push(model, "origins", channels=["stable"])
        for name, pairs in (("train", train), ("held-out", held_out)):
            client.datasets.push([{"text": text, "label": label} for text, label in pairs], name)
        wanted = goal(options.scenario, min_served_speedup=options.min_served_speedup, max_loss=options.max_loss)
        spec = job_spec(
            "origins@1",
            evaluation="held-out",
            training="train",
            goal=wanted,
            publish_as="advised",
            channels=["canary"],
            budget_seconds=60 * options.minutes,
        )
        console.print(f"{len(train)} sentences to train on, {len(held_out)} to judge by", highlight=False)
        job = client.advisor.recommend(spec)
        follow(client, job.id)
        tell(client, client.jobs.get(job.id))
