"""What was tried, drawn: faster is to the right, less lost is up; the mark's area is the version's size."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from services.optimization.page.advised.explored import Explored, Kind, Mark
from services.optimization.page.drawing import BLUE, GREEN, INK, MUTED, VERMILION, draw, drawable, plain_log, write
from services.optimization.page.tradeoff import Point, exact
from services.optimization.page.tradeoff_plot import name_points, whiskers
from services.optimization.page.wording import plain
from services.optimization.report import Interval

_STYLES = {Kind.ORIGINAL: (MUTED, "*"), Kind.ACCEPTED: (GREEN, "o"), Kind.NOT_ACCEPTED: (VERMILION, "v")}
_HEIGHT_INCHES = 3.9
_ORIGINAL_AREA, _LEAST_AREA, _MOST_AREA = 150.0, 14.0, 300.0  # of a mark, in square points
_LABEL_ALL_UP_TO = 14
_TICKS = tuple(float(digit * 10**power) for power in range(-2, 5) for digit in (1, 2, 3, 5))
_MARGIN = 1.25  # on the logarithmic axis
_EDGE = 4.0  # times the loss that is allowed


def plot(name: str, found: Explored) -> Markup:
    marks = [mark for mark in found.marks if _is_drawable(mark.point)]
    shapes = [speedup for _, speedup in found.shapes if speedup > 0 and drawable(speedup)]
    served = found.served if found.served is not None and _is_drawable(found.served) else None
    edge = _edge(found, marks)

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.13, 0.14, 0.84, 0.75))
        shown = [_clipped(mark, edge) for mark in marks]
        _set_axes(axes, found, [mark.point for mark in shown] + ([served] if served else []), shapes)
        _draw_goal(axes, found)
        _draw_front(axes, [point for point in found.front if _is_drawable(point)])
        for mark in shown:
            _draw_mark(axes, mark)
        axes.plot(shapes, [0.02] * len(shapes), "|", color=MUTED, markersize=9, transform=axes.get_xaxis_transform(), zorder=3)
        points = [mark.point for mark in shown]
        told = points if len(points) <= _LABEL_ALL_UP_TO else [point for point in points if point in found.front or point.chosen]
        if served is not None:
            _draw_served(axes, served)
        name_points(axes, [*told, *([served] if served else [])])

    title = (
        f"Speed-up against {found.unit} lost: {len(marks) - 1} recipes and the original, {len(found.front)} on the Pareto front, "
        f"{len(shapes)} measured for their speed alone"
    )
    return draw(name, title, _HEIGHT_INCHES, paint)


def _is_drawable(point: Point) -> bool:
    return point.gain.low > 0 and drawable(*_all(point.gain), *_all(point.quality))


def _edge(found: Explored, marks: Sequence[Mark]) -> float:
    """The largest loss that is drawn in its place: one hopeless recipe would squeeze all others into a line."""
    good = [mark.point.quality.high for mark in marks if mark.kind is not Kind.NOT_ACCEPTED]
    return max(_EDGE * found.max_loss, 1.2 * max(good, default=0.0), 1e-6)


def _clipped(mark: Mark, edge: float) -> Mark:
    """One past the edge stands on it, with its loss in its name."""
    lost = mark.point.quality.estimate
    if lost <= edge:
        return mark
    return replace(mark, point=replace(mark.point, name=f"{lost:.3g}: {mark.point.name}", quality=exact(edge)))


def _all(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def _area(size_share: float) -> float:
    return min(max(_ORIGINAL_AREA * size_share, _LEAST_AREA), _MOST_AREA)


def _draw_mark(axes: Axes, mark: Mark) -> None:
    colour, shape = _STYLES[mark.kind]
    x, y = mark.point.gain.estimate, mark.point.quality.estimate
    bars: dict[str, Any] = {"xerr": whiskers([mark.point.gain]), "yerr": whiskers([mark.point.quality])}
    axes.errorbar([x], [y], **bars, linestyle="none", elinewidth=0.9, ecolor=(colour, 0.35), zorder=2)
    axes.scatter([x], [y], s=_area(mark.size_share), color=colour, marker=shape, alpha=0.85, linewidths=0, zorder=3)
    if mark.point.chosen:
        axes.scatter([x], [y], s=_area(mark.size_share) + 110, facecolors="none", edgecolors=BLUE, linewidths=1.6, zorder=4)


def _draw_served(axes: Axes, point: Point) -> None:
    x, y = point.gain.estimate, point.quality.estimate
    bars: dict[str, Any] = {"xerr": whiskers([point.gain]), "yerr": whiskers([point.quality])}
    axes.errorbar([x], [y], **bars, linestyle="none", elinewidth=0.9, ecolor=(BLUE, 0.45), zorder=3)
    axes.scatter([x], [y], s=62, facecolors="white", edgecolors=BLUE, marker="D", linewidths=1.6, zorder=5)


def _draw_front(axes: Axes, points: Sequence[Point]) -> None:
    """Steps: between two points of the front the smaller loss is had only at the smaller speed-up."""
    gains, losses = [point.gain.estimate for point in points], [point.quality.estimate for point in points]
    axes.step(gains, losses, where="pre", color=BLUE, linewidth=1.2, alpha=0.7, zorder=2)


def _draw_goal(axes: Axes, found: Explored) -> None:
    """Where the goal is met: up from the loss that is allowed, right of the speed-up that is asked for."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    start = found.min_speedup or left
    axes.fill_between([start, right], min(found.max_loss, bottom), top, color=GREEN, alpha=0.1, linewidth=0, zorder=0)
    told = f"goal: at most {plain(found.max_loss)}" + (f", from {plain(found.min_speedup)}×" if found.min_speedup else "")
    write(axes, told, (1, 1), (-2, -3), GREEN, xycoords="axes fraction", ha="right", va="top")


def _set_axes(axes: Axes, found: Explored, points: Sequence[Point], shapes: Sequence[float]) -> None:
    gains = [*chain(*(_all(point.gain) for point in points)), *shapes, *([found.min_speedup] if found.min_speedup else [])]
    low, high = min(gains) / _MARGIN, max(gains) * _MARGIN
    plain_log(axes, "x", [tick for tick in _TICKS if low <= tick <= high])
    axes.set_xlim(low, high)
    losses = [*chain(*(_all(point.quality) for point in points)), found.max_loss]
    room = 0.14 * max(max(losses) - min(losses), 1e-6)
    axes.set_ylim(max(losses) + room, min(losses) - room)
    axes.set_xlabel("speed-up over the original")
    axes.set_title(f"lost, {found.unit} (less is better, so upwards)", color=INK, pad=8)
