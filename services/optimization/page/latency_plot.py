"""Time and throughput over the rows of a batch, candidates beside their original; one plot of two panels for each length."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from services.optimization.page.drawing import INK, MUTED, SERIES, draw, drawable, label, plain_log, write
from services.optimization.report import WorkloadResult

MAX_CANDIDATES = 5
_HEIGHT_INCHES = 4.6
_GAP_POINTS = 10.5  # between the labels of two lines
_SPREAD = 0.025  # how far the whiskers of neighbouring lines stand apart, as a share of a doubling


@dataclass(frozen=True)
class Line:
    """One model at one length, by rising rows."""

    name: str
    workloads: tuple[WorkloadResult, ...]


def lines_of(tokens: int, measured: Sequence[tuple[str, Sequence[WorkloadResult]]]) -> list[Line]:
    """Models that were measured at this length; of two results for one batch the later counts."""
    found = []
    for name, workloads in measured:
        by_rows = {
            w.batch_rows: w for w in workloads if w.tokens == tokens and w.p50_ms > 0 and drawable(w.p50_ms, w.p99_ms, w.rows_per_second)
        }
        if by_rows:
            found.append(Line(name, tuple(by_rows[rows] for rows in sorted(by_rows))))
    return found


def _style(index: int) -> dict[str, object]:
    """The first line is the original's."""
    colour, mark = (MUTED, "*") if index == 0 else SERIES[(index - 1) % len(SERIES)]
    return {"color": colour, "marker": mark, "markersize": 4.5, "linewidth": 2.2 if index == 0 else 1.4}


def _name_lines(axes: Axes, ends: Sequence[tuple[str, float, float]]) -> None:
    """At each line's right end, pushed apart upwards where they would cover each other."""
    to_points = 72 / axes.figure.dpi
    heights = [float(axes.transData.transform((x, y))[1]) * to_points for _, x, y in ends]
    floor = -np.inf
    for index in np.argsort(heights, kind="stable"):
        name, x, y = ends[index]
        height = max(heights[index], floor)
        floor = height + _GAP_POINTS
        colour = str(_style(int(index))["color"])
        write(axes, label(name, 17), (x, y), (6, height - heights[index]), colour, va="center", annotation_clip=False)


def _ticks(lines: Sequence[Line]) -> list[float]:
    return sorted({float(w.batch_rows) for line in lines for w in line.workloads})


def _draw_latency(axes: Axes, lines: Sequence[Line]) -> None:
    for index, line in enumerate(lines):
        rows = np.array([w.batch_rows for w in line.workloads]) * 2 ** (_SPREAD * (index - (len(lines) - 1) / 2))
        p50 = np.array([w.p50_ms for w in line.workloads])
        above = np.maximum(0, np.array([w.p99_ms for w in line.workloads]) - p50)
        axes.errorbar(rows, p50, yerr=[np.zeros(len(p50)), above], elinewidth=0.9, capsize=2, **_style(index))  # type: ignore[arg-type]
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.tick_params(axis="y", which="minor", labelsize=7.5, labelcolor=MUTED)


def _draw_throughput(axes: Axes, lines: Sequence[Line]) -> None:
    for index, line in enumerate(lines):
        axes.plot([w.batch_rows for w in line.workloads], [w.rows_per_second for w in line.workloads], **_style(index))  # type: ignore[arg-type]
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows in a batch")


def _finish(axes: Axes, lines: Sequence[Line], title: str, ends: Sequence[tuple[str, float, float]]) -> None:
    ticks = _ticks(lines)
    plain_log(axes, "x", ticks)
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.set_title(title, color=INK)
    _name_lines(axes, ends)


def plot(name: str, tokens: int, lines: Sequence[Line]) -> Markup:
    """`lines` begins with the original's and is not empty."""
    length = f", rows of {tokens} tokens" if tokens else ""

    def paint(figure: Figure) -> None:
        latency, throughput = figure.add_axes((0.11, 0.575, 0.64, 0.365)), figure.add_axes((0.11, 0.1, 0.64, 0.365))
        _draw_latency(latency, lines)
        _finish(
            latency,
            lines,
            f"ms a batch, p50, whisker to p99{length}",
            [(x.name, x.workloads[-1].batch_rows, x.workloads[-1].p50_ms) for x in lines],
        )
        _draw_throughput(throughput, lines)
        _finish(throughput, lines, "rows a second", [(x.name, x.workloads[-1].batch_rows, x.workloads[-1].rows_per_second) for x in lines])

    names = ", ".join(line.name for line in lines)
    return draw(name, f"Latency and throughput over batch rows{length}: {names}", _HEIGHT_INCHES, paint)
