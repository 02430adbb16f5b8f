"""Metrics against labels, by hand-made answers."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from services.optimization.evaluation.answers import Answers
from services.optimization.evaluation.metrics import Metric, metric_of
from services.optimization.evaluation.quality import Truth, loss_of, qualities
from services.optimization.examples import IGNORED
from services.repository.manifest import Task

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 4, 500)


def said(labels: np.ndarray, wrong: int = 0) -> Answers:
    """Logits that name the labels, but for the first `wrong`."""
    found = labels.copy()
    found[:wrong] = (found[:wrong] + 1) % 4
    return Answers(vectors=np.eye(4, dtype=np.float32)[found])


def test_accuracy_and_f1_with_their_difference() -> None:
    accuracy, f1 = qualities(Task.CLASSIFICATION, Truth(LABELS), said(LABELS, 20), said(LABELS, 45), seed=0)
    assert (accuracy.metric, accuracy.test, accuracy.examples) == (Metric.ACCURACY, "McNemar, exact", 500)
    assert accuracy.original.estimate == pytest.approx(0.96)
    assert accuracy.candidate.estimate == pytest.approx(0.91)
    assert accuracy.difference.estimate == pytest.approx(-0.05)
    assert accuracy.difference.low < -0.05 < accuracy.difference.high < 0
    assert accuracy.p_value < 1e-6
    assert f1.candidate.estimate == pytest.approx(f1_score(LABELS, np.argmax(said(LABELS, 45).vectors, 1), average="macro"))
    assert f1.difference.high < 0
    assert loss_of(accuracy).low == -accuracy.difference.high


def test_equal_answers_are_no_loss() -> None:
    for found in qualities(Task.IMAGE_CLASSIFICATION, Truth(LABELS), said(LABELS, 30), said(LABELS, 30), seed=0):
        assert found.difference.estimate == 0
        assert found.p_value == 1
        assert found.difference.low < 0 < found.difference.high  # equal answers to 500 examples do not prove equal answers to all


def test_tokens_without_a_label_do_not_count() -> None:
    labels = [np.array([IGNORED, 1, 0, IGNORED]), np.array([2, IGNORED])]
    right, wrong = [np.array([9, 1, 0, 9]), np.array([2, 9])], [np.array([0, 0, 0, 0]), np.array([2, 0])]
    truth = Truth(token_labels=labels)
    accuracy, f1 = qualities(Task.TOKEN_CLASSIFICATION, truth, Answers(predictions=right), Answers(predictions=wrong), seed=0)
    assert (accuracy.original.estimate, accuracy.candidate.estimate) == pytest.approx((1, 2 / 3))
    assert (f1.original.estimate, f1.candidate.estimate) == pytest.approx((1, (2 / 3 + 0 + 1) / 3))


def test_perplexity_by_ratio() -> None:
    losses = [RANDOM.uniform(1, 3, length) for length in RANDOM.integers(0, 30, 60)]
    worse = [values + np.log(1.1) for values in losses]
    predictions = [np.zeros(len(values) + 1, int) for values in losses]
    before, after = Answers(predictions=predictions, losses=losses), Answers(predictions=predictions, losses=worse)
    [found] = qualities(Task.CAUSAL_LM, Truth(), before, after, seed=0)
    assert found.original.estimate == pytest.approx(np.exp(np.concatenate(losses).mean()))
    assert found.difference.estimate == pytest.approx(0.1)
    assert (found.difference.low, found.difference.high) == pytest.approx((0.1, 0.1))
    assert loss_of(found).estimate == found.difference.estimate


def test_no_number_has_no_quality() -> None:
    assert qualities(Task.CLASSIFICATION, Truth(LABELS), said(LABELS), Answers(vectors=said(LABELS).vectors, is_finite=False), seed=0) == ()
    assert qualities(Task.EMBEDDING, Truth(), said(LABELS), said(LABELS), seed=0) == ()


@pytest.mark.parametrize(
    ("task", "labelled", "metric"),
    [
        (Task.CLASSIFICATION, True, Metric.ACCURACY),
        (Task.IMAGE_CLASSIFICATION, True, Metric.ACCURACY),
        (Task.TOKEN_CLASSIFICATION, True, Metric.MACRO_F1),
        (Task.CAUSAL_LM, False, Metric.PERPLEXITY),
        (Task.CLASSIFICATION, False, Metric.FIDELITY),
        (Task.EMBEDDING, True, Metric.FIDELITY),
        (Task.TENSOR, False, Metric.FIDELITY),
    ],
)
def test_the_tasks_own_metric(task: Task, labelled: bool, metric: Metric) -> None:
    assert metric_of(task, None, labelled=labelled) is metric


@pytest.mark.parametrize(
    ("task", "labelled", "asked"),
    [
        (Task.CLASSIFICATION, False, Metric.ACCURACY),
        (Task.EMBEDDING, True, Metric.MACRO_F1),
        (Task.CLASSIFICATION, True, Metric.PERPLEXITY),
    ],
)
def test_a_metric_that_cannot_be_computed_is_refused(task: Task, labelled: bool, asked: Metric) -> None:
    with pytest.raises(ValueError, match=asked):
        metric_of(task, asked, labelled=labelled)


def test_a_loss_past_what_exp_can_hold_is_a_figure_still() -> None:
    before, after = (Answers(predictions=[np.zeros(3, int)] * 9, losses=[np.full(2, loss)] * 9) for loss in (2.0, 5000.0))
    [found] = qualities(Task.CAUSAL_LM, Truth(), before, after, seed=0)
    assert loss_of(found).low > 1e100
