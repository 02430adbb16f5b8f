"""Curves over training steps."""

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.figure import Figure

from services.optimization.page.blocks import Series
from services.optimization.page.drawing import INK, SERIES, draw, label

MAX_SERIES = len(SERIES)
_HEIGHT_INCHES = 2.5


def plot(name: str, title: str, series: Sequence[Series]) -> Markup:
    """At most MAX_SERIES on one pair of axes, each labelled at its end."""

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.14, 0.17, 0.6, 0.72))
        for one, (colour, mark) in zip(series, SERIES, strict=False):
            steps, values = zip(*one.points, strict=True)
            axes.plot(steps, values, color=colour, linewidth=1.3, marker=mark, markersize=3, markevery=max(1, len(steps) // 12))
        axes.margins(x=0.02, y=0.1)
        axes.set_xlabel("step")
        axes.set_title(label(title, 48), color=INK)
        top, step = 0.97, 0.13  # in the order of their ends, so that label and line match without crossing
        ends = sorted(zip(series, SERIES, strict=False), key=lambda pair: -pair[0].points[-1][1])
        for index, (one, (colour, _)) in enumerate(ends):
            text = f"{label(one.name, 16)}\n{one.points[-1][1]:.3g}"
            axes.annotate(text, (1.03, top - index * step * 1.3), xycoords="axes fraction", va="top", fontsize=8, color=colour)

    told = "; ".join(f"{one.name} from {one.points[0][1]:.4g} to {one.points[-1][1]:.4g}" for one in series)
    return draw(name, f"{title} over steps: {told}", _HEIGHT_INCHES, paint)
