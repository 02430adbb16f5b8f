"""Before and after through the service, and the settings that were tried for it."""

from collections.abc import Iterator
from dataclasses import dataclass

from services.optimization.advisor.goal import Goal
from services.optimization.advisor.serving.served import ServedAdvice, ServedFigures, ServingAdvice
from services.optimization.page import wording
from services.optimization.page.advised import words


@dataclass(frozen=True)
class Row:
    """One version under one load; `times` is its rows per second by the original's under the same load."""

    name: str
    figures: ServedFigures
    times: str = ""
    callers: int = 0  # told where each has its own


@dataclass(frozen=True)
class Load:
    """What was asked, and what each version did."""

    title: str
    rows: tuple[Row, ...]
    note: str = ""

    @property
    def has_times(self) -> bool:
        return any(row.times for row in self.rows)


@dataclass(frozen=True)
class Setting:
    """Settings that were tried on top of those kept until then."""

    knob: str
    settings: str
    gain: str
    noise: str
    outcome: str


def loads(served: ServedAdvice, goal: Goal) -> tuple[Load, ...]:
    return tuple(_loads(served, goal))


def _loads(served: ServedAdvice, goal: Goal) -> Iterator[Load]:
    traffic = goal.traffic
    together = [Row("original", served.original)]
    if served.advice.settings:
        together.append(Row("chosen, default settings", served.candidate_default, _times(served.candidate_default, served.original)))
    together.append(Row(_chosen(served), served.candidate, wording.times(served.speedup.estimate)))
    callers = f"{traffic.callers} callers, each asking again" if traffic.callers > 1 else "One caller who asks again"
    yield Load(f"{callers} as soon as answered", tuple(together))
    if served.original_at_rate is not None and served.candidate_at_rate is not None:
        rate = f"At {wording.plain(traffic.rate)} requests a second" if traffic.rate else "At the recorded times"
        rows = (Row("original", served.original_at_rate), Row(_chosen(served), served.candidate_at_rate))
        yield Load(rate, rows, "At a given rate all versions that keep up answer as many rows: look at how long they take.")
    if goal.resolved.max_p99_ms is not None:
        yield _within(served, goal.resolved.max_p99_ms)


def _chosen(served: ServedAdvice) -> str:
    return f"chosen, {'its own' if served.advice.settings else 'default'} settings"


def _within(served: ServedAdvice, max_p99_ms: float) -> Load:
    found = {"original": served.original_capacity, _chosen(served): served.candidate_capacity}
    before = served.original_capacity
    rows = [
        Row(name, each.figures, _times(each.figures, before.figures) if before and each is not before else "", each.callers)
        for name, each in found.items()
        if each is not None
    ]
    late = [name for name, each in found.items() if each is None]
    note = f"Not within it, even for a single caller: {', '.join(late)}." if late else ""
    return Load(f"As many callers as stay within a p99 of {wording.plain(max_p99_ms)} ms", tuple(rows), note)


def _times(after: ServedFigures, before: ServedFigures) -> str:
    """Of two medians: the ratios with intervals are `ServedAdvice`'s own."""
    rows = before.rows_per_second.estimate
    return wording.times(after.rows_per_second.estimate / rows) if rows > 0 else ""


def settings(advice: ServingAdvice) -> tuple[Setting, ...]:
    """Those kept first, then those tried and left, those not tried, and those that failed."""
    return tuple(_settings(advice))


def _settings(advice: ServingAdvice) -> Iterator[Setting]:
    for tried, outcome in ((advice.kept, "kept"), (advice.not_kept, "left")):
        for each in tried:
            yield Setting(each.knob, words.settings(each.settings), wording.times(each.gain), wording.times(each.noise), outcome)
    for knob in advice.left:
        yield Setting(knob, "", "", "", "not tried: the time was over")
    for knob, why in sorted(advice.failed.items()):
        yield Setting(knob, "", "", "", f"could not be tried: {why}")
