"""What every candidate gives up for what it brings: points, Pareto front and gate lines, on paper before on a plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.optimization.evaluation.metrics import Metric
from services.optimization.page import wording
from services.optimization.page.story import Story
from services.optimization.recipe import Objective
from services.optimization.report import Candidate, Interval, Report, Verdict


@dataclass(frozen=True)
class Scale:
    """How quality is told: `baseline` is the original's, `gate` the worst that is accepted (None: not asked for)."""

    label: str
    baseline: float
    gate: float | None
    lower_is_better: bool = False
    digits: int = 2


@dataclass(frozen=True)
class Point:
    """`gain` is a ratio, the original's is 1."""

    name: str
    verdict: Verdict | None  # None: the original
    gain: Interval
    quality: Interval
    chosen: bool = False


@dataclass(frozen=True)
class Tradeoff:
    """Points by quality against one gain; `front` holds those that no other beats, by rising gain."""

    gain_label: str
    gain_gate: float | None
    scale: Scale
    points: tuple[Point, ...]
    front: tuple[Point, ...]


def exact(value: float) -> Interval:
    return Interval(estimate=value, low=value, high=value)


def scale_of(story: Story, metric: Metric) -> Scale:
    gates = story.gates.for_metric(metric)
    if metric is Metric.FIDELITY:
        return Scale("fidelity to the original (1 = equal)", 1.0, gates.min_fidelity, digits=4)
    allowed = None if gates.max_loss is None else 100 * gates.max_loss
    if metric is Metric.PERPLEXITY:
        return Scale("change of perplexity, % (less is better, so upwards)", 0.0, allowed, lower_is_better=True)
    gate = None if allowed is None else -allowed
    return Scale(f"change of {wording.METRICS[metric]}, points", 0.0, gate)


def _scaled(interval: Interval, factor: float) -> Interval | None:
    """None when it is past what a number can hold."""
    scaled = {"estimate": interval.estimate * factor, "low": interval.low * factor, "high": interval.high * factor}
    return Interval(**scaled) if all(map(math.isfinite, scaled.values())) else None


def quality_point(candidate: Candidate, metric: Metric) -> Interval | None:
    """On `scale_of`'s scale; None when it was not measured. The difference is paired, as the gates judge it."""
    if metric is Metric.FIDELITY:
        return candidate.fidelity
    quality = wording.quality_of(candidate, metric)
    return _scaled(quality.difference, 100) if quality is not None else None


def front_of(points: Sequence[Point], lower_is_better: bool) -> tuple[Point, ...]:
    """Points that no other beats: at least as good in both and better in one; by rising gain."""
    sign = -1.0 if lower_is_better else 1.0

    def place(point: Point) -> tuple[float, float]:
        return point.gain.estimate, sign * point.quality.estimate

    places = {place(point) for point in points}

    def beaten(gain: float, quality: float) -> bool:
        return any(g >= gain and q >= quality and (g, q) != (gain, quality) for g, q in places)

    return tuple(sorted((point for point in points if not beaten(*place(point))), key=place))


def _gain(candidate: Candidate, by_size: bool) -> Interval | None:
    if by_size:
        return exact(candidate.size_ratio) if candidate.measurement is not None else None
    return candidate.speedup


def tradeoff(story: Story, report: Report, *, by_size: bool) -> Tradeoff:
    """Quality by the report's metric against size or speed-up; the original is the first point, named "original"."""
    scale = scale_of(story, report.metric)
    points = [Point("original", None, exact(1.0), exact(scale.baseline))]
    for candidate in report.candidates:
        gain, quality = _gain(candidate, by_size), quality_point(candidate, report.metric)
        if gain is not None and quality is not None:
            points.append(Point(candidate.name, candidate.verdict, gain, quality, candidate.name == report.chosen))
    gated = story.gates.min_gain and (story.objective is Objective.SIZE) == by_size
    label = "times smaller than the original" if by_size else "speed-up over the original"
    return Tradeoff(label, story.gates.min_gain if gated else None, scale, tuple(points), front_of(points, scale.lower_is_better))
