"""A trade-off drawn: better is up and to the right."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from services.optimization.page.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, VERMILION, draw, drawable, label, plain_log, write
from services.optimization.page.tradeoff import Point, Tradeoff
from services.optimization.page.wording import plain
from services.optimization.report import Interval, Verdict

MARKS = {
    Verdict.ACCEPT: (GREEN, "o"),
    Verdict.REJECT_ACCURACY: (VERMILION, "v"),
    Verdict.REJECT_NO_GAIN: (PURPLE, "s"),
    Verdict.INCONCLUSIVE: (ORANGE, "D"),
    None: (MUTED, "*"),
}
_HEIGHT_INCHES = 3.5
_LABEL_ALL_UP_TO = 12
_LOG_FROM_RATIO = 8.0
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_LINE_POINTS, _CHARACTER_POINTS = 11.0, 5.4  # of a label's type
# From the mark to its label, in points, and the label's side that lies there.
_SPOTS = (
    ((6, 5), "left"),
    ((6, -12), "left"),
    ((-6, 5), "right"),
    ((-6, -12), "right"),
    ((6, 17), "left"),
    ((-6, 17), "right"),
    ((6, -24), "left"),
)

Box = tuple[float, float, float, float]


def whiskers(intervals: Iterable[Interval]) -> list[list[float]]:
    found = list(intervals)
    return [[max(0.0, i.estimate - i.low) for i in found], [max(0.0, i.high - i.estimate) for i in found]]


def _overlaps(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _box(at: tuple[float, float], spot: tuple[float, float], side: str, characters: int) -> Box:
    left, width = at[0] + spot[0], characters * _CHARACTER_POINTS
    left = left if side == "left" else left - width
    return left, at[1] + spot[1] - 2, left + width, at[1] + spot[1] + _LINE_POINTS - 2


def name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Each beside its mark where there is room; one without room is in the table."""
    to_points = 72 / axes.figure.dpi
    places = [tuple(axes.transData.transform((p.gain.estimate, p.quality.estimate)) * to_points) for p in points]
    left, bottom, right, top = (value * to_points for value in axes.get_window_extent().extents)
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for point, place in zip(points, places, strict=True):
        text = label(point.name)
        for spot, side in _SPOTS:
            box = _box(place, spot, side, len(text))
            inside = left < box[0] and bottom < box[1] and box[2] < right + 10 and box[3] < top
            if inside and not any(_overlaps(box, other) for other in taken):
                taken.append(box)
                weight = "bold" if point.chosen else "normal"
                write(axes, text, (point.gain.estimate, point.quality.estimate), spot, INK, ha=side, weight=weight)
                break


def _draw_points(axes: Axes, points: Sequence[Point], front: Sequence[Point]) -> None:
    """Where there are many, the intervals of those behind the front fade."""
    for point in points:
        colour, mark = MARKS[point.verdict]
        faded = len(points) > _LABEL_ALL_UP_TO and point not in front and not point.chosen
        axes.errorbar(
            [point.gain.estimate],
            [point.quality.estimate],
            xerr=whiskers([point.gain]),
            yerr=whiskers([point.quality]),
            color=colour,
            marker=mark,
            markersize=9 if point.verdict is None else 6,
            elinewidth=1,
            ecolor=(colour, 0.25 if faded else 1.0),
            linestyle="none",
            zorder=3,
        )
        if point.chosen:
            axes.plot([point.gain.estimate], [point.quality.estimate], "o", markersize=13, markerfacecolor="none", color=BLUE, zorder=4)


def _draw_front(axes: Axes, points: Sequence[Point]) -> None:
    """Steps: between two points of the front the better quality is had only at the smaller gain."""
    gains, qualities = [p.gain.estimate for p in points], [p.quality.estimate for p in points]
    axes.step(gains, qualities, where="pre", color=BLUE, linewidth=1.2, alpha=0.7, zorder=2)


def _draw_gates(axes: Axes, found: Tradeoff) -> None:
    style: dict[str, Any] = {"color": VERMILION, "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 1}
    quality, gain = found.scale.gate, found.gain_gate
    if quality is not None and drawable(quality):
        axes.axhline(quality, **style)
        write(axes, f"gate {plain(quality)}", (1, quality), (0, 3), VERMILION, xycoords=("axes fraction", "data"), ha="right")
    if gain is not None and drawable(gain):
        axes.axvline(gain, **style)
        write(axes, f"gate {plain(gain)}", (gain, 1), (2, 0), VERMILION, xycoords=("data", "axes fraction"), va="bottom")


def _set_axes(axes: Axes, found: Tradeoff, points: Sequence[Point]) -> None:
    gains = np.array([value for p in points for value in (p.gain.estimate, max(p.gain.low, 1e-3), p.gain.high)] + [found.gain_gate or 1.0])
    if gains.min() > 0 and gains.max() / gains.min() > _LOG_FROM_RATIO:
        low, high = gains.min() / 1.3, gains.max() * 1.3
        axes.set_xlim(low, high)
        plain_log(axes, "x", [tick for tick in _TICKS if low <= tick <= high])
        axes.set_xlim(low, high)
    else:
        axes.margins(x=0.18)
    axes.margins(y=0.18)
    axes.set_xlabel(found.gain_label)
    axes.set_title(found.scale.label, color=INK, pad=14)
    if found.scale.lower_is_better:
        axes.invert_yaxis()


def drawable_points(found: Tradeoff) -> list[Point]:
    return [p for p in found.points if p.gain.estimate > 0 and drawable(*_all(p.gain), *_all(p.quality))]


def _all(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def plot(name: str, found: Tradeoff) -> Markup:
    points = drawable_points(found)
    front = [point for point in found.front if point in points]

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.13, 0.15, 0.84, 0.71))
        _draw_points(axes, points, front)
        _draw_gates(axes, found)
        _set_axes(axes, found, points)
        _draw_front(axes, front)
        name_points(axes, points if len(points) <= _LABEL_ALL_UP_TO else [p for p in points if p in front or p.chosen])

    title = f"{found.scale.label} against {found.gain_label}: {len(points)} models, {len(front)} on the Pareto front"
    return draw(name, title, _HEIGHT_INCHES, paint)
