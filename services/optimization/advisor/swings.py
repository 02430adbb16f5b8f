"""Which input the net benefit hangs on: each moved alone, the others as they are."""

import math
from collections.abc import Callable, Iterator

from services.optimization.advisor.economics import Capacity, Economics, Measured, Speedup, Swing
from services.optimization.advisor.outcome import at_estimates, costs, outcome
from services.optimization.report import Interval

_PARTS = 5  # what was told is moved by a fifth of it; what was measured goes to its own bounds


def swings(economics: Economics, measured: Measured) -> tuple[Swing, ...]:
    """Widest first. What cannot be moved, a 0 or a measurement without noise, is left out."""
    found = [*_told(economics, measured), *_measured(economics, measured)]
    return tuple(sorted((swing for swing in found if swing.less != swing.more), key=lambda swing: -swing.width))


def _net(economics: Economics, measured: Measured) -> float:
    return outcome(economics, costs(economics, measured.job_instance_hours), at_estimates(measured)).net


def _swing(name: str, less: float, more: float, net_at: Callable[[float], float]) -> Swing:
    return Swing(name=name, less=less, more=more, net_at_less=net_at(less), net_at_more=net_at(more))


def _told(economics: Economics, measured: Measured) -> Iterator[Swing]:
    for name, field in type(economics).model_fields.items():
        value = getattr(economics, name)
        if field.annotation is int:
            yield _told_swing(name, *_count_moved(value), economics, measured)
        elif field.annotation is float:
            yield _told_swing(name, *_moved(value, most=1.0 if name == "utilization" else math.inf), economics, measured)
    hours = measured.job_instance_hours
    yield _swing("job_instance_hours", *_moved(hours), lambda at: _net(economics, _with(measured, job_instance_hours=at)))


def _told_swing(name: str, less: float, more: float, economics: Economics, measured: Measured) -> Swing:
    return _swing(name, less, more, lambda at: _net(economics.model_copy(update={name: at}), measured))


def _moved(value: float, most: float = math.inf) -> tuple[float, float]:
    return value - value / _PARTS, min(most, value + value / _PARTS)


def _count_moved(value: int) -> tuple[int, int]:
    """By one at least: a few instances would never move."""
    step = max(1, round(value / _PARTS))
    return max(1, value - step), value + step


def _measured(economics: Economics, measured: Measured) -> Iterator[Swing]:
    before, quality = measured.before.rows_per_second, measured.quality_change
    yield _swing("rows_per_second_before", *_bounds(before), lambda at: _net(economics, _with(measured, before=_capacity(at))))
    match measured.after:
        case Speedup(ratio=ratio):
            yield _swing("speedup", *_bounds(ratio), lambda at: _net(economics, _with(measured, after=Speedup(ratio=_certain(at)))))
        case capacity:
            rows = capacity.rows_per_second
            yield _swing("rows_per_second_after", *_bounds(rows), lambda at: _net(economics, _with(measured, after=_capacity(at))))
    yield _swing("quality_change", *_bounds(quality), lambda at: _net(economics, _with(measured, quality_change=_certain(at))))


def _with(measured: Measured, **changed: object) -> Measured:
    return measured.model_copy(update=changed)


def _bounds(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _certain(value: float) -> Interval:
    return Interval(estimate=value, low=value, high=value)


def _capacity(rows_per_second: float) -> Capacity:
    return Capacity(rows_per_second=_certain(rows_per_second))
