"""A recommendation's figures in words: losses with their unit, money, settings, the goal's fields."""

from collections.abc import Callable, Mapping
from typing import Any

from services.optimization.advisor.economics import Until
from services.optimization.evaluation.metrics import Metric
from services.optimization.page import wording
from services.optimization.report import Interval

# Of a loss, where 0.01 is 1.
UNITS = {
    Metric.ACCURACY: "points of accuracy",
    Metric.MACRO_F1: "points of macro F1",
    Metric.PERPLEXITY: "% of perplexity",
    Metric.FIDELITY: "points of agreement with the original",
}
# A target's field as its reader knows it.
TARGETS = {
    "max_loss": "the most that may be lost",
    "min_speedup": "the least speed-up of the model itself",
    "min_served_speedup": "the least speed-up through the service",
    "max_p99_ms": "the longest that 99 of 100 calls may take",
    "max_size_bytes": "the largest size on disk",
    "max_memory_bytes": "the most memory of a process that serves it",
}


def points(value: float) -> str:
    """Of a loss in units of the metric, without its unit."""
    return wording.fixed(100 * value, 2)


def lost(metric: Metric, value: float) -> str:
    """A loss, or a gain where it is negative, with its unit."""
    text, is_perplexity = points(abs(value)), metric is Metric.PERPLEXITY
    if float(text) == 0:
        return "no change of perplexity" if is_perplexity else f"{text} {UNITS[metric]} lost"
    if is_perplexity:
        return f"{text} % {'more' if value > 0 else 'less'} perplexity"
    return f"{text} {UNITS[metric]} {'lost' if value > 0 else 'gained'}"


def allowed(metric: Metric, value: float) -> str:
    """A limit of a loss, with its unit."""
    told, unit = wording.plain(100 * value), UNITS[metric]
    return f"{told} {unit.replace('points', 'point', 1) if told == '1' else unit}"


def count(value: float) -> str:
    """Of whole things."""
    return f"{round(value):,}".replace(",", "\u202f")


def amount(value: float) -> str:
    """Of money, without its currency: whole from a hundred on, three digits below."""
    if abs(value) < 100:
        return wording.number(value)
    return f"{value:,.0f}".replace("-", "−").replace(",", "\u202f") if abs(value) < 1e12 else wording.number(value)


def span(interval: Interval, show: Callable[[float], str] = wording.number) -> str:
    """An estimate with its bounds, where it has any."""
    told = show(interval.estimate)
    return told if interval.low == interval.high else f"{told} ({show(interval.low)} to {show(interval.high)})"


def until(found: Until, show: Callable[[float], str] = wording.number) -> str:
    """How long or how much it takes, with its bounds; "never" where it may never be."""
    high = "never" if found.high is None else show(found.high)
    return show(found.estimate) + ("" if found.low == found.high else f" ({show(found.low)} to {high})")


def many(value: float) -> str:
    """Of rows, which are counted in millions."""
    return f"{wording.number(value / 1e6)} million" if 1e6 <= value < 1e13 else wording.number(value)


def settings(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(found.items())) or "the service's defaults"


def months(found: Until) -> str:
    """Until a cost is earned, by its estimate, as the end of a sentence."""
    return "within a month" if found.estimate < 1 else f"in {wording.number(found.estimate, 2)} months"


def missed(sentence: str) -> tuple[str, str]:
    """One of `Advice.missed` as what it is about, in words, and what came of it."""
    field, _, found = sentence.partition(": ")
    return TARGETS.get(field, field), found
