"""Money drawn: what has come in month by month, and which input moves the sum."""

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from services.optimization.advisor.economics import Swing, Worth
from services.optimization.page.advised.money import input_name
from services.optimization.page.advised.words import amount
from services.optimization.page.drawing import BLUE, INK, MUTED, ORANGE, draw, drawable, label, write
from services.optimization.page.wording import number

_NET_HEIGHT_INCHES = 3.0
_BAR_INCHES, _ROOM_INCHES = 0.36, 1.05  # of the tornado: each bar, and what surrounds them
_LABEL_CHARACTERS = 26


def is_drawable(worth: Worth) -> bool:
    """Whether every figure of it fits an axis."""
    nets = [
        value for month in worth.months for value in (month.cumulative_net.low, month.cumulative_net.estimate, month.cumulative_net.high)
    ]
    return drawable(*nets, *(value for swing in worth.sensitivity for value in (swing.net_at_less, swing.net_at_more)))


def net(name: str, worth: Worth) -> Markup:
    """The cumulative net over the months with its 95 % band."""
    months = [month.month for month in worth.months]
    nets = [month.cumulative_net for month in worth.months]

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.16, 0.16, 0.8, 0.72))
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.fill_between(months, [each.low for each in nets], [each.high for each in nets], color=BLUE, alpha=0.18, linewidth=0)
        axes.plot(months, [each.estimate for each in nets], color=BLUE, linewidth=1.6, marker="o", markersize=3)
        axes.margins(x=0.04, y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _write_money(axes, "y")
        axes.set_xlabel("month")
        axes.set_title(f"net, added up, {label(worth.currency)}; band: 95 % interval", color=INK)

    ends = [f"{amount(each.estimate)} after month {month}" for month, each in ((months[0], nets[0]), (months[-1], nets[-1]))]
    title = f"Cumulative net in {worth.currency}: {', '.join(ends)}"
    return draw(name, title, _NET_HEIGHT_INCHES, paint)


def tornado(name: str, worth: Worth, swings: Sequence[Swing]) -> Markup:
    """The net benefit when one input alone is moved, the widest on top; `swings` is not empty."""
    middle = worth.net_benefit.estimate

    def paint(figure: Figure) -> None:
        height = figure.get_size_inches()[1]
        axes = figure.add_axes((0.40, 0.5 / height, 0.53, 1 - _ROOM_INCHES / height))
        for row, swing in enumerate(swings):
            rises = swing.net_at_more > swing.net_at_less
            ends = ((swing.net_at_less, swing.less, ORANGE, not rises), (swing.net_at_more, swing.more, BLUE, rises))
            for end, value, colour, is_right in ends:
                axes.barh(row, end - middle, left=middle, height=0.62, color=colour, alpha=0.85, zorder=2)
                write(axes, number(value), (end, row), (3 if is_right else -3, 0), INK, ha="left" if is_right else "right", va="center")
        axes.axvline(middle, color=INK, linewidth=1)
        axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(swings)), labels=[label(input_name(swing), _LABEL_CHARACTERS) for swing in swings])
        axes.invert_yaxis()
        axes.margins(x=0.22)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _write_money(axes, "x")
        figure.text(0.02, 1 - 0.24 / height, f"net benefit, {label(worth.currency)}, one input moved", color=INK, fontsize=9.5)

    told = ", ".join(input_name(swing) for swing in swings)
    return draw(name, f"What the net benefit hangs on, the widest first: {told}", _ROOM_INCHES + _BAR_INCHES * len(swings), paint)


def _write_money(axes: Axes, axis: str) -> None:
    (axes.xaxis if axis == "x" else axes.yaxis).set_major_formatter(lambda value, _: amount(value).replace("\u202f", " "))
