"""Plots as inline SVG: no pyplot, text as outlines so that they look the same everywhere, the same bytes for the same figures."""

import io
import math
import re
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

# Okabe and Ito's colours, told apart by every kind of sight; the shapes differ as well.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
SERIES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (ORANGE, "D"), (PURPLE, "v"), (SKY, "P"))
INK, MUTED, GRID = "#1c1c1c", "#666666", "#dcdcdc"

WIDTH_INCHES = 4.8
LABEL_CHARACTERS = 20

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",  # ships with the library
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "hone",
    "text.parse_math": False,  # a "$" in a name is a "$"
    "xtick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelsize": 8.5,
}
# The library keeps its settings and its font cache per process and locks neither.
_LOCK = threading.Lock()


@cache
def _outlines() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def label(text: str, characters: int = LABEL_CHARACTERS) -> str:
    """One line that the font can show, cut: a name from outside may be anything."""
    line = "".join(c if ord(c) in _outlines() else "□" for c in " ".join(text.split()))
    return line if len(line) <= characters else f"{line[: characters - 1]}…"


def drawable(*values: float) -> bool:
    """Whether all are numbers that an axis can hold beside others."""
    return all(value == 0 or (math.isfinite(value) and 1e-9 < abs(value) < 1e12) for value in values)


def plain_log(axes: Axes, axis: str, ticks: list[float]) -> None:
    """A logarithmic axis with these ticks, written out, and no others."""
    set_scale, own = (axes.set_xscale, axes.xaxis) if axis == "x" else (axes.set_yscale, axes.yaxis)
    set_scale("log")
    own.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    own.set_ticks([], minor=True)


def write(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], colour: str, **more: Any) -> None:
    """`text` at `offset` points from the data's point `at`, on a veil that keeps it readable over lines."""
    veil = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
    axes.annotate(text, at, offset, **{"textcoords": "offset points", "fontsize": 8, "color": colour, "bbox": veil, "zorder": 5, **more})


def draw(name: str, title: str, height_inches: float, paint: Callable[[Figure], None]) -> Markup:
    """What `paint` puts on an empty figure, as `<svg>` for an HTML page.

    `name` is an id that is unique in the page and holds letters and digits alone; `title` is the alternative text.
    """
    with _LOCK, mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches))
        paint(figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(written.getvalue(), name, title)


def _inline(svg: str, name: str, title: str) -> Markup:
    """Without prolog, comments, style sheet and metadata; ids made unique in the page; titled."""
    opening = re.search(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', svg)
    if opening is None:
        raise ValueError("an SVG without a viewBox")
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg[opening.end() :], flags=re.DOTALL)
    body = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"\s*\n\s*", " ", body)
    head = (
        f'<svg class="plot" role="img" aria-labelledby="{name}" viewBox="{opening[1]}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return Markup(f'{head}<title id="{name}">{escape(title)}</title>{body}')  # noqa: S704  the library's own, stripped; the title is escaped
