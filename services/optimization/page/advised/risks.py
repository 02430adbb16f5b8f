"""What may turn out otherwise than the figures say, each with the figure that tells so."""

from collections.abc import Iterator
from dataclasses import dataclass

from services.optimization.advisor.serving.served import ServedAdvice, ServedFigures
from services.optimization.advisor.serving.traffic import Traffic
from services.optimization.page import wording
from services.optimization.page.advised import words
from services.optimization.page.advised.facts import Facts, loss
from services.optimization.page.advised.money import decisive, input_name
from services.optimization.recipe import Step, parse_parameters
from services.optimization.report import Candidate
from services.optimization.techniques import find

_NEAR = 0.2  # of a limit, within which an interval's end is near it
_SHARED = 0.05  # of the processor time, above which those who asked took enough of it to be told
_EQUAL = 0.9999  # of the worst example, above which the answers are the original's


@dataclass(frozen=True)
class Risk:
    title: str
    sentence: str


def risks(facts: Facts) -> tuple[Risk, ...]:
    """Of the best candidate; only what the report's facts tell."""
    if facts.best is None:
        return ()
    return (*_of_quality(facts, facts.best), *_of_data(facts, facts.best), *_of_serving(facts), *_of_money(facts))


def _of_quality(facts: Facts, best: Candidate) -> Iterator[Risk]:
    lost, limit, metric = loss(best, facts.report.metric), facts.max_loss, facts.report.metric
    if lost is not None:
        high, most, unit = words.points(lost.high), wording.plain(100 * limit), words.UNITS[metric]
        if lost.high >= (1 - _NEAR) * limit:
            told = f"The loss may be as high as {high} {unit} (95 % interval), where at most {most} may be lost."
            yield Risk("The loss is near its limit", told)
        if lost.high > 0 and lost.high - lost.low > limit:
            width, examples = words.points(lost.high - lost.low), _examples(facts, best)
            yield Risk(
                "The loss is known only roughly",
                f"Its 95 % interval is {width} {unit} wide, wider than the {most} that may be lost"
                + (f", from {examples} examples." if examples else "."),
            )
    if best.fidelity is not None and best.min_fidelity < _EQUAL:
        made, mean = " → ".join(step.technique for step in best.steps), wording.fidelity(best.fidelity.estimate)
        yield Risk(
            "Answers are not always the original's",
            f"After {made} they agree with the original's at {mean} in the mean, and at {wording.fidelity(best.min_fidelity)} for the "
            "example that changed most, 1 being equal: who relies on single answers staying as they are will see changes.",
        )


def _examples(facts: Facts, best: Candidate) -> int:
    quality = wording.quality_of(best, facts.report.metric)
    return quality.examples if quality is not None else _count(facts, "evaluation")


def _count(facts: Facts, kind: str) -> int:
    """Examples of a kind that the job had; 0 of what is not told."""
    told = facts.report.data.get(kind)
    count = told.get("examples") if isinstance(told, dict) else None
    return count if isinstance(count, int) else 0


def _of_data(facts: Facts, best: Candidate) -> Iterator[Risk]:
    training, evaluation = _count(facts, "training"), _count(facts, "evaluation")
    if training and evaluation and any(_trains(step) for step in best.steps):
        yield Risk(
            "Whether users ask what it was trained on is not known",
            f"It was trained on {training} examples and judged on {evaluation} others. No example is in both, but whether both come from "
            "one source is not told: where users' texts differ from these, so may the loss.",
        )


def _trains(step: Step) -> bool:
    """False of what this version of the program does not know: nothing is told that is not sure."""
    try:
        return parse_parameters(find(step.technique), step, "step").uses_training()
    except (KeyError, ValueError):
        return False


def _of_serving(facts: Facts) -> Iterator[Risk]:
    served = facts.advice.served
    if served is None:
        note = facts.advice.serving_note
        if note:
            yield Risk("Nothing was measured through the service", f"The figures are those of the model by itself: {note}.")
        return
    yield from _of_speedup(facts, served)
    traffic = facts.advice.goal.traffic
    if not (traffic.texts or traffic.token_lengths or traffic.gaps_s):
        told = f"The requests were stated ({_stated(traffic)}), not recorded: with other lengths or arrivals the figures differ."
        yield Risk("The traffic was not recorded", told)
    yield from _of_replay(served)


def _of_speedup(facts: Facts, served: ServedAdvice) -> Iterator[Risk]:
    wanted, low = facts.advice.goal.resolved.min_served_speedup, served.speedup.low
    if wanted is not None and low <= (1 + _NEAR) * wanted:
        told = f"It may be as low as {wording.times(low)} (95 % interval), where {wording.plain(wanted)}× is wanted."
        yield Risk("The served speed-up is near its target", told)


def _stated(traffic: Traffic) -> str:
    rows = sorted(set(traffic.request_rows))
    each = f"{rows[0]}" if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"
    load = f"{wording.plain(traffic.rate)} requests a second" if traffic.rate else f"{traffic.callers} callers"
    return f"{load}, {each} row{'s' if rows[-1] > 1 else ''} each"


def _of_replay(served: ServedAdvice) -> Iterator[Risk]:
    names = {"original": served.original, "chosen": served.candidate}
    rates = {"original at its rate": served.original_at_rate, "chosen at its rate": served.candidate_at_rate}
    failed = [(name, each) for name, each in (names | rates).items() if each is not None and each.unanswered]
    if failed:
        told = "; ".join(f"{name}: {each.unanswered} of {each.unanswered + each.requests}" for name, each in failed)
        yield Risk("Requests were not answered in the replay", f"Refused or failed: {told}.")
    shares = [_asking_share(each) for each in (served.candidate, served.original)]
    if max(shares) >= _SHARED:
        taken = [f"{wording.plain(round(100 * share))} %" for share in shares]
        yield Risk(
            "Those who asked shared the cores with the service",
            f"They took {taken[0]} of the processor time beside the chosen version and {taken[1]} beside the original, on the same "
            f"{served.cores} cores: where callers have cores of their own, rates are higher and their ratio is another.",
        )
    settings = served.advice.settings
    if "cores" in settings:
        kept = ", ".join(f"{name}={settings[name]}" for name in ("instances", "threads") if name in settings)
        told = f"{kept} was chosen for {settings['cores']} cores; on another number the service passes it over and uses its defaults."
        yield Risk("Settings that hold on this number of cores only", told)


def _asking_share(figures: ServedFigures) -> float:
    whole = figures.cpu_ms_per_row + figures.asking_cpu_ms_per_row
    return figures.asking_cpu_ms_per_row / whole if whole > 0 else 0.0


def _of_money(facts: Facts) -> Iterator[Risk]:
    worth = facts.advice.worth
    swing = decisive(worth) if worth is not None else None
    if worth is None or swing is None:
        return
    less, more = (f"{words.amount(value)} {worth.currency}" for value in (swing.net_at_less, swing.net_at_more))
    told = f"With {wording.number(swing.less)} the net benefit is {less}, with {wording.number(swing.more)} it is {more}."
    yield Risk(f"Whether it pays hangs on one input: {input_name(swing)}", told)
