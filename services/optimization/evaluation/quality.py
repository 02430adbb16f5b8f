"""How good answers are against labels or against the text itself, candidate and original on the same examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.optimization.evaluation.answers import Answers, Floats, Ints
from services.optimization.evaluation.intervals import (
    Statistic,
    bootstrap,
    mcnemar,
    never_certain,
    paired_difference,
    percentile_interval,
    resampled_sums,
    two_sided,
    wilson,
)
from services.optimization.evaluation.metrics import Metric
from services.optimization.examples import IGNORED
from services.optimization.report import Interval, Quality
from services.repository.manifest import Task

_LARGEST_LOSS = 700.0  # of a token: past it exp is infinite, which no report can hold; the model is broken long before


@dataclass(frozen=True)
class Truth:
    """Labels of the examples: one each, or one per token with IGNORED where there is none. Neither: a language model's own text."""

    labels: Ints | None = None  # [n]
    token_labels: Sequence[Ints] | None = None

    def __bool__(self) -> bool:
        return self.labels is not None or self.token_labels is not None


def qualities(task: Task, truth: Truth, original: Answers, candidate: Answers, seed: int) -> tuple[Quality, ...]:
    """Every metric that can be computed, best known first; none for a candidate with NaN or infinity."""
    if not candidate.is_finite:
        return ()
    if task is Task.CAUSAL_LM:
        return (_perplexity(original, candidate, seed),)
    if not truth:
        return ()
    labels, before, after = _by_example(truth), _predicted(truth, original), _predicted(truth, candidate)
    return (_accuracy(truth, labels, before, after, seed), _macro_f1(labels, before, after, seed))


def _by_example(truth: Truth) -> list[Ints]:
    """Each example's labels that count."""
    if truth.token_labels is None:
        return [np.array([label]) for label in (truth.labels if truth.labels is not None else ())]
    return [labels[labels != IGNORED] for labels in truth.token_labels]


def _predicted(truth: Truth, answers: Answers) -> list[Ints]:
    """Predictions where there is a label."""
    if answers.vectors is not None:
        return [np.array([label]) for label in answers.vectors.argmax(axis=1)]
    marks = truth.token_labels or ()
    return [found[labels != IGNORED] for found, labels in zip(answers.predictions, marks, strict=True)]


def _accuracy(truth: Truth, labels: list[Ints], before: list[Ints], after: list[Ints], seed: int) -> Quality:
    was, became = _right(labels, before), _right(labels, after)
    if truth.token_labels is not None:
        return _bootstrapped(Metric.ACCURACY, was, became, lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1), seed)
    examples = len(labels)
    gained, lost = int((became > was)[:, 0].sum()), int((was > became)[:, 0].sum())
    return Quality(
        metric=Metric.ACCURACY,
        original=wilson(int(was[:, 0].sum()), examples),
        candidate=wilson(int(became[:, 0].sum()), examples),
        difference=paired_difference(gained, lost, examples),
        p_value=mcnemar(gained, lost),
        test="McNemar, exact",
        examples=examples,
    )


def _right(labels: list[Ints], found: list[Ints]) -> Floats:
    """[examples, (right, all)]."""
    return np.array([[(wanted == got).sum(), len(wanted)] for wanted, got in zip(labels, found, strict=True)], np.float64)


def _macro_f1(labels: list[Ints], before: list[Ints], after: list[Ints], seed: int) -> Quality:
    classes = 1 + max(int(values.max(initial=0)) for group in (labels, before, after) for values in group)
    was, became = _confusion(labels, before, classes), _confusion(labels, after, classes)
    return _bootstrapped(Metric.MACRO_F1, was, became, _f1_of(classes), seed)


def _confusion(labels: list[Ints], found: list[Ints], classes: int) -> Floats:
    """[examples, 3 x classes]: right, predicted and wanted counts of each class."""
    rows = []
    for wanted, got in zip(labels, found, strict=True):
        right = np.bincount(wanted[wanted == got], minlength=classes)
        rows.append(np.concatenate([right, np.bincount(got, minlength=classes), np.bincount(wanted, minlength=classes)]))
    return np.array(rows, np.float64)


def _f1_of(classes: int) -> Statistic:
    """Mean over the classes that occur, wanted or predicted."""

    def statistic(sums: Floats) -> Floats:
        right, predicted, wanted = sums[..., :classes], sums[..., classes : 2 * classes], sums[..., 2 * classes :]
        seen = predicted + wanted
        scores = np.divide(2 * right, seen, out=np.zeros_like(seen), where=seen > 0)
        mean: Floats = scores.sum(-1) / np.maximum((seen > 0).sum(-1), 1)
        return mean

    return statistic


def _perplexity(original: Answers, candidate: Answers, seed: int) -> Quality:
    """The difference is a share of the original's: 0.05 is 5 % more."""
    before, after = (np.array([[values.sum(), len(values)] for values in answers.losses], np.float64) for answers in (original, candidate))
    kept = before[:, 1] > 0

    def perplexity(sums: Floats) -> Floats:
        return np.exp(np.minimum(sums[..., 0] / np.maximum(sums[..., 1], 1), _LARGEST_LOSS))

    was, became = before[kept], after[kept]
    drawn_before, drawn_after = (perplexity(resampled_sums(counts, seed)) for counts in (was, became))
    ratio = float(perplexity(became.sum(0)) / perplexity(was.sum(0)))
    changes = drawn_after / drawn_before - 1
    return Quality(
        metric=Metric.PERPLEXITY,
        original=bootstrap(was, perplexity, seed),
        candidate=bootstrap(became, perplexity, seed),
        difference=percentile_interval(ratio - 1, changes),
        p_value=two_sided(changes),
        test="paired bootstrap",
        examples=int(kept.sum()),
    )


def _bootstrapped(metric: Metric, before: Floats, after: Floats, statistic: Statistic, seed: int) -> Quality:
    """Counts [examples, k] of both, drawn together."""
    drawn_before, drawn_after = (statistic(resampled_sums(counts, seed)) for counts in (before, after))
    was, became = float(statistic(before.sum(0))), float(statistic(after.sum(0)))
    return Quality(
        metric=metric,
        original=percentile_interval(was, drawn_before),
        candidate=percentile_interval(became, drawn_after),
        difference=never_certain(percentile_interval(became - was, drawn_after - drawn_before), len(before)),
        p_value=two_sided(drawn_after - drawn_before),
        test="paired bootstrap",
        examples=len(before),
    )


def loss_of(quality: Quality) -> Interval:
    """How much worse the candidate is: positive is worse, whichever way the metric points."""
    if quality.metric.lower_is_better:
        return quality.difference
    return Interval(estimate=-quality.difference.estimate, low=-quality.difference.high, high=-quality.difference.low)
