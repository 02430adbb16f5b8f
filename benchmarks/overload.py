"""`python -m benchmarks overload`: more requests than the service can answer, for a minute: what is answered in time, refused, and kept."""

import argparse
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import hone
from hone.cli.show import console, megabytes, table

from benchmarks import load
from benchmarks.lengths import texts_of
from benchmarks.serving import NO_CACHE, RECIPES, make_version
from benchmarks.suite import running_inference, running_suite

PEAK_S = 5.0
PEAK_ROUNDS = 3
SAMPLE_S = 2.0


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks overload", description=__doc__)
    parser.add_argument("--times", type=float, default=4.0, help="of the rate that the service answers at its peak")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--rows", type=int, default=8, help="texts of a request; with few, sending and refusing takes the cores that count")
    parser.add_argument("--callers", type=int, default=16, help="that find the peak")
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds")
    parser.add_argument("--recipe", choices=RECIPES, default="int8", help="which version of MiniLM is served")
    options = parser.parse_args(arguments)
    with running_suite(HONE_OPTIMIZATION_EVALUATION_S="2") as suite:
        folder = make_version(suite, options.recipe)
        with running_inference(suite.folder / "repository", **NO_CACHE) as address, hone.Client(inference=address) as client:
            client.wait_until_served("bench")
            plan = load.Plan(address, "bench", texts_of("mixed", folder, 2048), options.callers, PEAK_S, rows=options.rows)
            peaks = [load.run(plan) for _ in range(PEAK_ROUNDS)]
            rate = options.times * statistics.median(each.per_second for each in peaks)
            over = load.Plan(
                address, "bench", plan.texts, 0, options.seconds, rows=options.rows, rate=rate, deadline_s=options.deadline, warm_s=2.0
            )
            seen, memory = _watched(client, over)
            peaks += [load.run(plan) for _ in range(PEAK_ROUNDS)]  # again: the machine's speed drifts
    _show(options, peaks, seen, memory)


def _watched(client: hone.Client, plan: load.Plan) -> tuple[load.Load, list[int]]:
    """The load, and the service's resident bytes every few seconds of it."""
    memory = []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(load.run, plan)
        while not running.done():
            memory.append(client.statistics().resident_bytes)
            try:
                running.result(SAMPLE_S)
            except TimeoutError:
                continue
    return running.result(), memory


def _show(options: argparse.Namespace, peaks: Sequence[load.Load], over: load.Load, memory: Sequence[int]) -> None:
    peak = statistics.median(each.per_second for each in peaks)
    offered = over.requests + over.refused + over.late + over.failed
    rows = [
        ("peak", f"{peak:.0f}", f"{peak:.0f}", "1.00", *_latencies(peaks), ""),
        (
            f"{options.times:g} times the peak",
            f"{offered / over.seconds:.0f}",
            f"{over.per_second:.0f}",
            f"{over.per_second / peak:.2f}",
            *_latencies([over]),
            f"{over.refused_p50_ms:.1f} / {over.refused_p99_ms:.1f}",
        ),
    ]
    columns = ("load", "requests/s", "answered/s", "of peak", "p50 ms", "p99 ms", "refused: p50 / p99 ms")
    title = f"MiniLM, {options.rows} texts a request, deadline {options.deadline:g} s, {over.seconds:g} s of overload"
    console.print(table(title, columns, rows))
    early, last = memory[: max(1, len(memory) // 10)], memory[-max(1, len(memory) // 10) :]
    before, after = statistics.median_low(early), statistics.median_low(last)
    console.print(
        f"refused {over.refused}, too late {over.late}, failed {over.failed}; resident memory {megabytes(before)}, "
        f"{(after - before) / 1e6:+.1f} MB by the end; the generator used {over.cpu_seconds / over.seconds:.2f} cores",
        highlight=False,
    )


def _latencies(loads: Sequence[load.Load]) -> list[str]:
    """Medians of p50 and p99, ms."""
    return [f"{statistics.median(values):.1f}" for values in ([each.p50_ms for each in loads], [each.p99_ms for each in loads])]
