"""What came of a goal, in the words of whoever decides about it."""

from collections.abc import Iterator
from dataclasses import replace

from services.optimization.advisor.advice import Tried
from services.optimization.advisor.economics import Worth
from services.optimization.advisor.serving.served import ServedAdvice
from services.optimization.page import wording
from services.optimization.page.advised import words
from services.optimization.page.advised.facts import Facts, loss
from services.optimization.page.advised.targets import Standing, standings
from services.optimization.page.headline import Figure, Headline, figures_of, nearest_of
from services.optimization.recipe import Objective
from services.optimization.report import Candidate, Interval, Quality

_ENDED = {"CANCELLED": "Cancelled before its end", "FAILED": "Failed before its end"}


def verdict(facts: Facts) -> Headline:
    """One sentence that may stand alone, then what it stands on."""
    if facts.best is None:
        return _nothing_passed(facts) if facts.report.candidates else _ended_early(facts)
    if facts.is_published:
        return _published(facts, facts.best)
    return _missed(facts, facts.best) if facts.advice.missed else _unpublished(facts, facts.best)


def _published(facts: Facts, best: Candidate) -> Headline:
    unmet = [found.name for found in standings(facts) if found.standing is Standing.MISSED]
    met = "The goal is met" if not unmet else f"Published, though this was not reached: {', '.join(unmet)}"
    sentence = f"{met}: {facts.story.published}, made from {facts.story.source} by {best.name}, {_told(facts, best)}."
    return Headline(sentence, published=True, figures=tuple(_figures(facts, best)), remarks=tuple(_remarks(facts)))


def _missed(facts: Facts, best: Candidate) -> Headline:
    missed = [words.missed(line) for line in facts.advice.missed]
    what = ", ".join(name for name, _ in missed)
    sentence = f"The goal is missed and nothing was published. Not reached: {what}. The nearest is {best.name}: it {_told(facts, best)}."
    remarks = tuple(f"Missed, {name}: {found}." for name, found in missed)
    return Headline(sentence, published=False, figures=tuple(_figures(facts, best)), remarks=(*remarks, *_remarks(facts)))


def _unpublished(facts: Facts, best: Candidate) -> Headline:
    ended = _ENDED.get(facts.story.state, "It ended before its publication")
    sentence = f"{ended}: nothing was published. {best.name} reached the goal: it {_told(facts, best)}."
    return Headline(sentence, published=False, figures=tuple(_figures(facts, best)), remarks=tuple(_remarks(facts)))


def _nothing_passed(facts: Facts) -> Headline:
    nearest = nearest_of(facts.report, facts.story.objective)
    sentence = "The goal is missed and nothing was published: no recipe kept its quality and brought what was asked for."
    if nearest is None:
        return Headline(sentence, published=False, remarks=tuple(_remarks(facts)))
    sentence = f"{sentence} The nearest is {nearest.name}: it {_told(facts, nearest)}."
    why = f"Why {nearest.name} did not pass: {nearest.reason}"
    return Headline(sentence, published=False, figures=tuple(_figures(facts, nearest)), remarks=(why, *_remarks(facts)))


def _ended_early(facts: Facts) -> Headline:
    ended, trials = _ENDED.get(facts.story.state, "It ended before its end"), facts.advice.trials
    count = f"{len(trials)} recipe{'s' if len(trials) != 1 else ''}"
    best, nearest = facts.best_trial, facts.nearest_trial
    if best is not None:
        found = f"The best of the {count} that were tried is {best.name}, in a short run: {_trial(facts, best)}."
    elif nearest is not None:
        found = (
            f"Of the {count} that were tried none was accepted; the nearest is {nearest.name}, in a short run: {_trial(facts, nearest)}."
        )
    else:
        found = f"Of the {count} that were tried none was judged yet."
    return Headline(f"{ended}: nothing was published. {found}", published=False, remarks=tuple(_remarks(facts)))


def _trial(facts: Facts, trial: Tried) -> str:
    told = [f"{wording.times(trial.speedup.estimate)} as fast by itself"] if trial.speedup else []
    told += [f"{wording.times(trial.size_ratio)} smaller"] if facts.story.objective is Objective.SIZE else []
    return ", ".join(told + ([words.lost(facts.report.metric, trial.loss.estimate)] if trial.loss else []))


def _told(facts: Facts, candidate: Candidate) -> str:
    """What the candidate brings and costs, as the end of a sentence that begins with it."""
    worth, lost = _worth_of(facts, candidate), loss(candidate, facts.report.metric)
    gains = ", ".join(_gains(facts, candidate))
    quality = f", with {words.lost(facts.report.metric, lost.estimate)}" if lost else ""
    return f"is {gains}{quality}{f'; {_earned(worth)}' if worth else ''}"


def _gains(facts: Facts, candidate: Candidate) -> Iterator[str]:
    served = _served_of(facts, candidate)
    if facts.story.objective is Objective.SIZE and candidate.size_ratio:
        yield f"{wording.times(candidate.size_ratio)} smaller"
    if served is not None:
        yield f"served {wording.times(served.speedup.estimate)} as fast"
    elif candidate.speedup is not None:
        yield f"{wording.times(candidate.speedup.estimate)} as fast by itself"


def _earned(worth: Worth) -> str:
    payback = worth.payback_months
    if not worth.total_cost:
        return _saved(worth)
    return f"{_saved(worth)} now, paid back {words.months(payback) if payback else 'never'}"


def _saved(worth: Worth) -> str:
    now = worth.monthly_saving.estimate
    return f"{words.amount(abs(now))} {worth.currency} a month {'more' if now < 0 else 'saved'}"


def _served_of(facts: Facts, candidate: Candidate) -> ServedAdvice | None:
    """Only one candidate was served."""
    return facts.advice.served if candidate is facts.best else None


def _worth_of(facts: Facts, candidate: Candidate) -> Worth | None:
    return facts.advice.worth if candidate is facts.best else None


def _figures(facts: Facts, candidate: Candidate) -> Iterator[Figure]:
    served, worth = _served_of(facts, candidate), _worth_of(facts, candidate)
    if served is not None:
        yield _throughput(served)
    lost, quality = loss(candidate, facts.report.metric), wording.quality_of(candidate, facts.report.metric)
    if lost is not None:
        yield _loss(facts, lost, quality)
    if worth is not None:
        yield from _money(worth)
    for figure in figures_of(facts.report, candidate):
        if figure.name == "speed":
            yield replace(figure, short=f"{figure.short}, by itself", sentence=f"Without the service: {figure.sentence}")
        elif figure.name == "size":
            yield figure


def _throughput(served: ServedAdvice) -> Figure:
    ratio = served.speedup
    rows = [wording.number(found.rows_per_second.estimate) for found in (served.original, served.candidate)]
    sentence = (
        f"Through the service {rows[1]} rows a second instead of {rows[0]}: {words.span(ratio, wording.times)}, 95 % interval, "
        f"measured in turns on the same {served.cores} cores."
    )
    tone = "good" if ratio.low > 1 else "bad" if ratio.high < 1 else "even"
    return Figure("served", f"{wording.times(ratio.estimate)} the throughput, served", sentence, tone)


def _loss(facts: Facts, lost: Interval, quality: Quality | None) -> Figure:
    metric, limit = facts.report.metric, facts.max_loss
    told = [f"95 % interval of the loss {words.points(lost.low)} to {words.points(lost.high)} {words.UNITS[metric]}"]
    told.append(f"{wording.plain(100 * limit)} at most may be lost")
    if quality is not None:
        told.append(
            f"{wording.level(metric, quality.original.estimate)} before and {wording.level(metric, quality.candidate.estimate)} after"
        )
        told.append(f"{quality.examples} examples")
    tone = "bad" if lost.high > limit else "good" if lost.high < 0 else "even"
    return Figure("loss", words.lost(metric, lost.estimate), f"{'; '.join(told)}.", tone)


def _money(worth: Worth) -> Iterator[Figure]:
    now, currency = worth.monthly_saving, worth.currency
    tone = "good" if now.low > 0 else "bad" if now.high < 0 else "even"
    before, after = (words.span(found, words.count) for found in (worth.now.instances_before, worth.now.instances_after))
    yield Figure("saving", _saved(worth), f"Now: {words.span(now, words.amount)} {currency}; instances {before} → {after}.", tone)
    if worth.total_cost:
        payback = worth.payback_months
        short = f"paid back {words.months(payback)}" if payback else "not paid back"
        net = f"Over {len(worth.months)} months the net benefit is {words.span(worth.net_benefit, words.amount)} {currency}"
        earned = f"; the cost is earned back in {words.until(payback)} months" if payback else ""
        yield Figure("payback", short, f"{net}{earned}.", {"PAYS": "good", "DOES_NOT_PAY": "bad"}.get(worth.payoff, "even"))


def _remarks(facts: Facts) -> Iterator[str]:
    advice = facts.advice
    if facts.story.failure:
        yield f"The job ended early: {facts.story.failure}"
    if advice.trials and facts.report.candidates:
        found = len(advice.trials)
        yield (
            f"{found} recipe{'s were' if found != 1 else ' was'} tried in short runs, {wording.seconds(advice.seconds)} in all. "
            f"The search ended because {advice.stopped_because}; the final measurements, which decide, came after it."
        )
    if advice.serving_note:
        yield f"Nothing was measured through the service: {advice.serving_note}"
    if advice.goal.economics is not None and advice.worth is None and facts.report.candidates:
        yield "Nothing was priced: what it is worth follows from what was measured through the service."
