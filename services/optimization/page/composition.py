"""The page put together: figures drawn, template filled."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from services.optimization.evaluation.metrics import Metric
from services.optimization.page import curve_plot, latency_plot, rules, tradeoff_plot, wording
from services.optimization.page.advised.facts import facts_of
from services.optimization.page.advised.part import part_of
from services.optimization.page.advised.verdict import verdict
from services.optimization.page.blocks import Block, Curves, Series, blocks, series_of
from services.optimization.page.headline import chosen_of, headline
from services.optimization.page.live import Live
from services.optimization.page.story import Story
from services.optimization.page.tradeoff import Tradeoff, tradeoff
from services.optimization.report import Candidate, Measurement, Report, WorkloadResult

# A plot takes tens of milliseconds: past so many curves the tables beside them have to do.
MAX_CURVE_PLOTS = 12
MAX_LENGTHS = 4


@dataclass
class Illustrator:
    """Draws with ids that are unique in one page, curves until there are enough."""

    drawn: int = 0
    curves_left: int = MAX_CURVE_PLOTS

    def name(self) -> str:
        self.drawn += 1
        return f"plot{self.drawn}"

    def tradeoff(self, found: Tradeoff) -> Markup:
        return tradeoff_plot.plot(self.name(), found)

    def latency(self, tokens: int, lines: Sequence[latency_plot.Line]) -> Markup:
        return latency_plot.plot(self.name(), tokens, lines)

    def curves(self, block: Curves) -> list[Markup]:
        """One plot for each quantity; fewer, or none, when the page has many."""
        groups = grouped(block.series)[: self.curves_left]
        self.curves_left -= len(groups)
        return [curve_plot.plot(self.name(), title, series) for title, series in groups]


def grouped(series: Sequence[Series]) -> list[tuple[str, list[Series]]]:
    """Losses share their axes, other quantities have their own; no axes hold more than can be told apart."""
    groups: dict[str, list[Series]] = {}
    for one in series:
        quantity = one.name.removeprefix("validation_").removeprefix("train_")
        groups.setdefault("loss" if "loss" in quantity else quantity, []).append(one)
    size = curve_plot.MAX_SERIES
    return [(title, members[start : start + size]) for title, members in groups.items() for start in range(0, len(members), size)]


@dataclass(frozen=True)
class LatencyPart:
    """One length: its plot, and how many measured candidates it leaves to the tables."""

    title: str
    plot: Markup
    left_out: int


def _shown(report: Report, speed: Tradeoff) -> list[Candidate]:
    """Those whose lines are drawn: the chosen one, then the Pareto front's and the fastest."""
    measured = [candidate for candidate in report.candidates if candidate.measurement is not None]
    front = {point.name for point in speed.front if point.verdict is not None}

    def rank(candidate: Candidate) -> tuple[bool, bool, float]:
        speedup = candidate.speedup.estimate if candidate.speedup else 0.0
        return candidate.name != report.chosen, candidate.name not in front, -speedup

    return sorted(measured, key=rank)[: latency_plot.MAX_CANDIDATES]


def _latency(report: Report, speed: Tradeoff, illustrator: Illustrator) -> list[LatencyPart]:
    measured = [(candidate.name, candidate.measurement.workloads) for candidate in _shown(report, speed) if candidate.measurement]
    lengths = sorted({workload.tokens for workload in report.original.workloads})[:MAX_LENGTHS]
    parts = []
    for tokens in lengths:
        originals, lines = latency_plot.lines_of(tokens, [("original", report.original.workloads)]), latency_plot.lines_of(tokens, measured)
        if originals:
            title = f"Rows of {tokens} tokens" if tokens else "Every row"
            total = sum(1 for c in report.candidates if c.measurement and any(w.tokens == tokens for w in c.measurement.workloads))
            parts.append(LatencyPart(title, illustrator.latency(tokens, [*originals, *lines]), total - len(lines)))
    return parts


@dataclass(frozen=True)
class Beside:
    """One workload of a candidate beside the original's; `original` is None where that has none of this shape."""

    candidate: WorkloadResult
    original: WorkloadResult | None

    @property
    def ratio(self) -> str:
        if self.original is None or not self.original.rows_per_second:
            return ""
        return wording.times(self.candidate.rows_per_second / self.original.rows_per_second)


def beside(candidate: Measurement, original: Measurement) -> list[Beside]:
    known = {(w.batch_rows, w.tokens): w for w in original.workloads}
    return [Beside(w, known.get((w.batch_rows, w.tokens))) for w in candidate.workloads]


@dataclass(frozen=True)
class Section:
    """What the page tells of one candidate."""

    candidate: Candidate
    anchor: str
    chosen: bool
    recipe: str
    parts: tuple[tuple[str, tuple[Block, ...]], ...]
    workloads: Sequence[Beside] = field(default_factory=list)


def _parts(notes: Mapping[str, Any]) -> tuple[tuple[str, tuple[Block, ...]], ...]:
    """(title, blocks): each step's by itself, what belongs to none at the end."""
    steps = notes.get("steps")
    listed = isinstance(steps, Sequence) and not isinstance(steps, str) and all(isinstance(step, Mapping) for step in steps)
    found = []
    for index, step in enumerate(steps if listed and steps else ()):
        rest = {key: value for key, value in step.items() if key != "technique"}
        found.append((f"Step {index + 1}: {step.get('technique', 'unnamed')}", blocks(rest)))
    rest = {key: value for key, value in notes.items() if not (key == "steps" and listed)}
    return (*found, *((("Notes", blocks(rest)),) if rest else ()))


def _section(index: int, candidate: Candidate, report: Report) -> Section:
    steps = [step.model_dump(mode="json") for step in candidate.steps]
    return Section(
        candidate=candidate,
        anchor=f"candidate{index + 1}",
        chosen=bool(report.chosen) and candidate.name == report.chosen,
        recipe=json.dumps(steps, indent=2, ensure_ascii=False),
        parts=_parts(candidate.notes),
        workloads=beside(candidate.measurement, report.original) if candidate.measurement else [],
    )


def embedded(report: Report) -> Markup:
    """The report's JSON for a `<script>` element, in which only "</script" and "<!--" could end or bend the data."""
    text = report.model_dump_json()
    for character in "<>&\u2028\u2029":  # in JSON these occur inside strings alone
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  holds no "<"


def without_texts(report: Report) -> Report:
    """Without the traffic that users sent: a page is passed on to people who may not read it."""
    goal = report.advice.get("goal", {})
    traffic = goal.get("traffic", {})
    if not traffic.get("texts"):
        return report
    kept = {**report.advice, "goal": {**goal, "traffic": {**traffic, "texts": []}}}
    return report.model_copy(update={"advice": kept})


def _metrics(report: Report) -> list[Metric]:
    """Those against labels, the report's own first."""
    found = dict.fromkeys(quality.metric for candidate in report.candidates for quality in candidate.qualities)
    return sorted(found, key=lambda metric: metric is not report.metric)


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(wording=wording)
    return environment.get_template("page.html.jinja")


def compose(story: Story, report: Report, live: Live) -> str:
    facts, illustrator = facts_of(story, report), Illustrator()
    story = facts.story if facts else story
    tradeoffs = [tradeoff(story, report, by_size=by_size) for by_size in (False, True)]
    compared = [rules.compare(candidate, report.metric, report.environment) for candidate in report.candidates]
    return _template().render(
        style=Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8")),  # noqa: S704  our own file
        story=story,
        report=report,
        gates=story.gates.for_metric(report.metric),
        headline=verdict(facts) if facts else headline(story, report),
        advised=part_of(facts, live, illustrator.name) if facts else None,
        chosen=chosen_of(report),
        metrics=_metrics(report),
        sections=[_section(index, candidate, report) for index, candidate in enumerate(report.candidates)],
        tradeoffs=[(found, illustrator.tradeoff(found)) for found in tradeoffs if len(found.points) > 1],
        latency=_latency(report, tradeoffs[0], illustrator),
        rules=[comparison for comparison in compared if comparison is not None],
        training=Curves("training", series_of(story.curves)),
        environment=blocks(report.environment),
        data=blocks(report.data),
        draw_curves=illustrator.curves,
        json=embedded(without_texts(report)),
    )
