"""Figures as a reader wants them: three digits, a unit, a true minus sign."""

import math
from datetime import datetime

from services.optimization.evaluation.metrics import Metric
from services.optimization.report import Candidate, Interval, Quality, Verdict

VERDICTS = {
    Verdict.ACCEPT: "accepted",
    Verdict.REJECT_ACCURACY: "rejected: quality",
    Verdict.REJECT_NO_GAIN: "rejected: no gain",
    Verdict.INCONCLUSIVE: "inconclusive",
    Verdict.INFEASIBLE: "infeasible",
}
METRICS = {
    Metric.ACCURACY: "accuracy",
    Metric.MACRO_F1: "macro F1",
    Metric.PERPLEXITY: "perplexity",
    Metric.FIDELITY: "fidelity",
}
_SPACE = "\u00a0"  # no line ends between a figure and its unit


def number(value: float, digits: int = 3) -> str:
    """`digits` significant ones, no exponent between 1e-4 and 1e7."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    magnitude = math.floor(math.log10(abs(value)))
    if not -4 <= magnitude < 7:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}".replace("-", "−").replace(",", "\u202f")


def plain(value: float) -> str:
    """As it was asked for, without trailing zeros."""
    return f"{value:g}".replace("-", "−")


def fixed(value: float, digits: int) -> str:
    """With `digits` after the point, a sign only where it is negative."""
    return signed(value, digits).removeprefix("+")


def signed(value: float, digits: int) -> str:
    """With `digits` after the point; what rounds to zero has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def megabytes(size_bytes: float) -> str:
    return f"{number(size_bytes / 1e6)}{_SPACE}MB"


def seconds(value: float) -> str:
    if value < 1:
        return f"{number(value * 1e3)}{_SPACE}ms"
    if value < 120:
        return f"{number(value)}{_SPACE}s"
    return f"{number(value / 60)}{_SPACE}min" if value < 7200 else f"{number(value / 3600)}{_SPACE}h"


def times(value: float) -> str:
    return f"{number(value)}×"


def bounds(interval: Interval) -> str:
    return f"{number(interval.low)} to {number(interval.high)}"


def instant(value: datetime | None) -> str:
    return "" if value is None else value.strftime("%Y-%m-%d %H:%M:%S") + (" UTC" if not value.utcoffset() else value.strftime(" %z"))


def p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {number(value, 2)}"


def fidelity(value: float) -> str:
    return f"{value:.4f}"


def level(metric: Metric, value: float) -> str:
    """A metric's value: shares in percent."""
    match metric:
        case Metric.FIDELITY:
            return fidelity(value)
        case Metric.PERPLEXITY:
            return number(value, 4)
    return f"{100 * value:.2f}{_SPACE}%"


def change(metric: Metric, value: float) -> str:
    """A difference of a metric in points of a hundred, a perplexity's in percent of the original's. The unit is left to `change_unit`."""
    return signed(value, 4) if metric is Metric.FIDELITY else signed(100 * value, 2)


def change_unit(metric: Metric) -> str:
    if metric is Metric.PERPLEXITY:
        return f"{_SPACE}%"
    return "" if metric is Metric.FIDELITY else " points"


def loss(quality: Quality) -> float:
    """What the candidate lost by its estimate, positive when worse: of 1, and of a perplexity a share of the original's."""
    return quality.difference.estimate if quality.metric.lower_is_better else -quality.difference.estimate


def quality_of(candidate: Candidate, metric: Metric) -> Quality | None:
    return next((quality for quality in candidate.qualities if quality.metric is metric), None)
