"""What a search found, as `hone advise` prints it, and what one would try."""

from collections.abc import Sequence
from typing import Literal

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from hone.cli import precisions, show
from hone.optimization.v1 import advisor_pb2

_MOST_SKIPPED = 5  # that are named


def tell(found: advisor_pb2.Recommendation) -> None:
    """Prints it, also of a search that was cut short."""
    show.console.print(_trials(found))
    _say(found.stopped_because + ("" if found.is_target_met else "; the goal was not met"))
    if found.skipped:
        _say(_skipped(found.skipped))
    if found.HasField("serving"):
        show.console.print(_serving(found.serving))
        _say("served with " + (", ".join(f"{name}={value}" for name, value in found.serving.settings.items()) or "the defaults"))
    if found.precisions:
        show.console.print(precisions.table(found))
    for line in (*(f"missed: {line}" for line in found.missed), found.serving_note, found.worth.verdict):
        if line:
            _say(line)


def _say(words: str) -> None:
    show.console.print(words, highlight=False, markup=False)


def outline(found: advisor_pb2.PlanRecommendationResponse) -> Group:
    rows = [
        (
            t.name,
            f"{t.expected_speedup:.1f}x",
            f"{t.expected_size_ratio:.1f}x",
            f"{t.chance:.0%}",
            f"{t.estimated_seconds:.0f} s",
            escape(t.basis),
        )
        for t in found.trials
    ]
    columns = ("recipe", "expected\nspeed-up", "smaller", "chance to\nmeet the goal", "estimate", "expected by")
    return Group(
        show.table("what would be tried, the best chance for its time first", columns, rows),
        f"at most {found.longest_seconds:.0f} s if all were tried; the budget is {found.budget_seconds:.0f} s",
        *(f"[yellow]{escape(line)}[/]" for line in found.notes),
    )


def _trials(found: advisor_pb2.Recommendation) -> Table:
    columns = ("recipe", "expected", "speed-up", "smaller", "loss", "took", "what came of it")
    return show.table("what was tried, in short runs", columns, [_trial(trial) for trial in found.trials])


def _trial(trial: advisor_pb2.Trial) -> tuple[str, ...]:
    measured = trial.HasField("speedup")
    return (
        trial.name,
        f"{trial.expected_speedup:.1f}x",
        show.interval(trial.speedup, 2) if measured else "",
        f"{trial.size_ratio:.1f}x" if measured else "",
        show.interval(trial.loss, 4) if trial.HasField("loss") else "",
        f"{trial.seconds:.0f} s",
        "shape alone" if trial.is_shape and measured else "accepted" if trial.accepted else escape(trial.reason),
    )


def _skipped(found: Sequence[advisor_pb2.SkippedTrial]) -> str:
    named = [f"{trial.name} ({trial.expected_speedup:.1f}x by {trial.basis}, chance {trial.chance:.1%})" for trial in found[:_MOST_SKIPPED]]
    more = len(found) - len(named)
    return f"not tried, too unlikely to meet the goal: {', '.join(named)}" + (f" and {more} more" if more else "")


def _serving(found: advisor_pb2.Serving) -> Table:
    rows = [
        (name, show.interval(served.rows_per_second, 0), _ms(served, "p50_ms"), _ms(served, "p99_ms"), f"{served.cpu_ms_per_row:.2f}")
        for name, served in (
            ("original", found.original),
            ("chosen, default settings", found.chosen_with_defaults),
            ("chosen, its own settings", found.chosen),
        )
    ]
    title = f"through the service: {show.interval(found.speedup, 2)} times the original's throughput"
    return show.table(title, ("", "rows/s", "p50 ms", "p99 ms", "CPU ms/row"), rows)


def _ms(served: advisor_pb2.Served, name: Literal["p50_ms", "p99_ms"]) -> str:
    return f"{getattr(served, name):.1f}" if served.HasField(name) else "unanswered"
