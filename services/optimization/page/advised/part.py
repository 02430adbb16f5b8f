"""The recommendation's part of a page put together: what is told in tables, and what is drawn."""

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from services.optimization.advisor.advice import Advice
from services.optimization.page.advised import comparison, explored, explored_plot, money, money_plot, serving, words
from services.optimization.page.advised.facts import Facts
from services.optimization.page.advised.risks import Risk, risks
from services.optimization.page.advised.targets import Target, standings
from services.optimization.page.live import Live


@dataclass(frozen=True)
class Money:
    """`plots` is empty where a figure is past what an axis holds."""

    verdict: str
    pairs: tuple[tuple[str, str], ...]
    plots: tuple[Markup, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """What the template fills in. `chosen` is the recipe that was published, "" for none; `unit` that of a loss."""

    advice: Advice
    chosen: str
    was_held: bool  # whether a candidate was held to the targets
    unit: str
    targets: tuple[Target, ...]
    explored: explored.Explored
    plot: Markup | None  # None: nothing was judged
    loads: tuple[serving.Load, ...]
    settings: tuple[serving.Setting, ...]
    served_with: str
    money: Money | None
    risks: tuple[Risk, ...]
    live: tuple[comparison.Compared, ...]
    live_remark: str


def part_of(facts: Facts, live: Live, name: Callable[[], str]) -> Part:
    """`name` answers an id that is unique in the page, for each plot."""
    advice, found = facts.advice, explored.explored(facts)
    served = advice.served
    return Part(
        advice=advice,
        chosen=facts.report.chosen if facts.is_published else "",
        was_held=facts.best is not None,
        unit=words.UNITS[facts.report.metric],
        targets=standings(facts),
        explored=found,
        plot=explored_plot.plot(name(), found) if len(found.marks) > 1 else None,
        loads=serving.loads(served, advice.goal) if served else (),
        settings=serving.settings(served.advice) if served else (),
        served_with=words.settings(served.advice.settings) if served else "",
        money=_money(advice, name),
        risks=risks(facts),
        live=comparison.compared(facts, live),
        live_remark=live.remark,
    )


def _money(advice: Advice, name: Callable[[], str]) -> Money | None:
    worth = advice.worth
    if worth is None:
        return None
    plots = []
    if money_plot.is_drawable(worth):
        moving = money.swings(worth)
        plots = [money_plot.net(name(), worth), *([money_plot.tornado(name(), worth, moving)] if moving else [])]
    return Money(worth.verdict, money.pairs(worth), tuple(plots), worth.left_out)
