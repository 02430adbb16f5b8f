"""How good the best so far is, by what was spent until then: a search beside random orders."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.replay import Band
from services.optimization.page.drawing import BLUE, MUTED, VERMILION, draw

_HEIGHT_INCHES = 1.7  # of one panel


@dataclass(frozen=True)
class Course:
    """Shares of the grid's best by shares of the grid's cost; the search ended by itself at `ended`."""

    name: str
    costs: Sequence[float]
    search: Sequence[float]
    random: Sequence[Band]
    ended: float


def drawn(courses: Sequence[Course]) -> str:
    """An SVG, a panel for each."""

    def paint(figure: Figure) -> None:
        for axes, course in zip(figure.subplots(len(courses), 1, sharex=True, squeeze=False)[:, 0], courses, strict=True):
            _paint(axes, course)
        axes.set_xlabel("cost, share of the full grid's (%)")
        axes.legend(loc="lower right", fontsize=8, frameon=False)
        figure.tight_layout()

    title = "Best accepted speed-up so far by cost: the search and random orders"
    return str(draw("anytime", title, _HEIGHT_INCHES * len(courses) + 0.4, paint))


def _paint(axes: Axes, course: Course) -> None:
    costs = [100 * cost for cost in course.costs]
    low, high, median = ([100 * getattr(band, part) for band in course.random] for part in ("low", "high", "median"))
    axes.fill_between(costs, low, high, step="post", color=MUTED, alpha=0.2, linewidth=0, label="random, 90 % of orders")
    axes.step(costs, median, where="post", color=VERMILION, linestyle="--", label="random, median")
    axes.step(costs, [100 * share for share in course.search], where="post", color=BLUE, label="search")
    axes.axvline(100 * course.ended, color=BLUE, linewidth=0.8, linestyle=":", label="the search ends")
    axes.set_title(course.name)
    axes.set_ylabel("of the best (%)")
    axes.set_ylim(0, 104)
