"""What came of a job, in plain words, before any table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from services.optimization.evaluation.metrics import Metric
from services.optimization.page import wording
from services.optimization.page.story import Story
from services.optimization.recipe import Objective
from services.optimization.report import Candidate, Interval, Measurement, Quality, Report, Verdict

# What one candidate, and what several, did.
_OUTCOMES = {
    Verdict.ACCEPT: ("passed its gates", "passed their gates"),
    Verdict.REJECT_ACCURACY: ("loses more quality than the gates allow", "lose more quality than the gates allow"),
    Verdict.REJECT_NO_GAIN: ("gains less than the gates ask for", "gain less than the gates ask for"),
    Verdict.INCONCLUSIVE: ("leaves open whether it passes", "leave open whether they pass"),
    Verdict.INFEASIBLE: ("could not be carried out on this model", "could not be carried out on this model"),
}
_NEAREST = (Verdict.ACCEPT, Verdict.INCONCLUSIVE, Verdict.REJECT_NO_GAIN, Verdict.REJECT_ACCURACY)


@dataclass(frozen=True)
class Figure:
    """One figure of the chosen candidate: what it is, the short form, the sentence. `tone` is "good", "bad" or "even"."""

    name: str
    short: str
    sentence: str
    tone: str


@dataclass(frozen=True)
class Headline:
    sentence: str
    published: bool
    figures: tuple[Figure, ...] = ()
    remarks: tuple[str, ...] = ()


def chosen_of(report: Report) -> Candidate | None:
    return next((candidate for candidate in report.candidates if report.chosen and candidate.name == report.chosen), None)


def _speed(speedup: Interval) -> Figure:
    told = f"{wording.times(speedup.estimate)} the original's throughput (95 % interval {wording.bounds(speedup)})"
    if speedup.low > 1:
        return Figure("speed", f"{wording.times(speedup.estimate)} as fast", f"{told}.", "good")
    if speedup.high < 1:
        return Figure("speed", f"slower: {wording.times(speedup.estimate)} the speed", f"Slower than the original: {told}.", "bad")
    return Figure("speed", "no change of speed shown", f"{told}, which includes 1: no difference in speed was shown.", "even")


def _size(original: Measurement, candidate: Measurement, ratio: float) -> Figure:
    told = f"{wording.megabytes(candidate.size_bytes)} on disk instead of {wording.megabytes(original.size_bytes)}"
    if ratio >= 1.01:
        return Figure("size", f"{wording.times(ratio)} smaller", f"{told}.", "good")
    if 0 < ratio <= 0.99:
        return Figure("size", f"{wording.times(1 / ratio)} larger", f"Larger than the original: {told}.", "bad")
    return Figure("size", "same size", f"{told}.", "even")


def _fidelity(fidelity: Interval, worst: float) -> Figure:
    told = f"{wording.fidelity(fidelity.estimate)} (95 % interval {wording.fidelity(fidelity.low)} to {wording.fidelity(fidelity.high)})"
    sentence = f"Answers agree with the original's at {told}, 1 being equal; the worst single example at {wording.fidelity(worst)}."
    return Figure(
        "fidelity", f"fidelity {wording.fidelity(fidelity.estimate)}", sentence, "good" if fidelity.estimate >= 0.9999 else "even"
    )


def _quality(quality: Quality) -> Figure:
    metric, name = quality.metric, wording.METRICS[quality.metric]
    unit, difference = wording.change_unit(metric), quality.difference
    levels = f"{wording.level(metric, quality.original.estimate)} before, {wording.level(metric, quality.candidate.estimate)} after"
    interval = f"{wording.change(metric, difference.low)} to {wording.change(metric, difference.high)}{unit}"
    shown = difference.low > 0 or difference.high < 0
    tone = "even" if not shown else "bad" if wording.loss(quality) > 0 else "good"
    verdict = "" if shown else ", which includes 0: no difference was shown"
    short = f"{wording.change(metric, difference.estimate)}{f'{unit} of' if unit else ''} {name}"
    tested = f"{quality.test}, {wording.p_value(quality.p_value)}, {quality.examples} examples"
    return Figure(name, short, f"{name.capitalize()} {levels}; 95 % interval of the difference {interval} ({tested}){verdict}.", tone)


def figures_of(report: Report, candidate: Candidate) -> tuple[Figure, ...]:
    """Speed, size, and quality by the report's metric, as far as they were measured."""
    found = []
    if candidate.speedup is not None:
        found.append(_speed(candidate.speedup))
    if candidate.measurement is not None:
        found.append(_size(report.original, candidate.measurement, candidate.size_ratio))
    quality = wording.quality_of(candidate, report.metric)
    if quality is not None:
        found.append(_quality(quality))
    if candidate.fidelity is not None and (quality is None or report.metric is Metric.FIDELITY):
        found.append(_fidelity(candidate.fidelity, candidate.min_fidelity))
    return tuple(found)


def _counted(candidates: Sequence[Candidate]) -> str:
    counts = Counter(candidate.verdict for candidate in candidates)
    told = [f"{counts[verdict]} {_OUTCOMES[verdict][counts[verdict] > 1]}" for verdict in Verdict if counts[verdict]]
    return ", ".join(told) + "."


def nearest_of(report: Report, objective: Objective) -> Candidate | None:
    """The best that was measured and did not pass: what is open before what brings nothing before what loses too much."""
    measured = [candidate for candidate in report.candidates if candidate.verdict in _NEAREST]

    def rank(candidate: Candidate) -> tuple[int, float]:
        gain = candidate.size_ratio if objective is Objective.SIZE else candidate.speedup.estimate if candidate.speedup else 0.0
        return _NEAREST.index(candidate.verdict), -gain

    return min(measured, key=rank, default=None)


def _nothing(story: Story, report: Report) -> Headline:
    failure = (f"The job ended early: {story.failure}",) if story.failure else ()
    if not report.candidates:
        return Headline("Nothing was published: the job has no candidates.", published=False, remarks=failure)
    number = len(report.candidates)
    who = "the one candidate did not pass" if number == 1 else f"none of the {number} candidates passed"
    sentence = f"Nothing was published: {who} its gates."
    if any(candidate.verdict is Verdict.ACCEPT for candidate in report.candidates):
        sentence = "Nothing was published, although a candidate passed its gates."
    nearest = nearest_of(report, story.objective)
    best = (f"The best found is {nearest.name}, which is not published: {nearest.reason}",) if nearest else ()
    return Headline(sentence, published=False, remarks=(*failure, _counted(report.candidates), *best))


def headline(story: Story, report: Report) -> Headline:
    chosen = chosen_of(report)
    if chosen is None:
        return _nothing(story, report)
    figures = figures_of(report, chosen)
    told = ", ".join(figure.short for figure in figures)
    ended = f" The job ended early: {story.failure}" if story.failure else ""
    if not story.published:
        return Headline(f"{chosen.name} passed its gates but was not published: {told}.{ended}", published=False, figures=figures)
    others = [candidate for candidate in report.candidates if candidate is not chosen]
    remarks = (f"Of the other candidates, {_counted(others)}",) if others else ()
    return Headline(f"{story.published} was published: {told}.", published=True, figures=figures, remarks=remarks)
