import numpy as np
import pytest

from services.optimization.evaluation.answers import Answers
from services.optimization.evaluation.fidelity import classification_fidelity, compare, embedding_fidelity, retrieval_agreement
from services.repository.manifest import Task

VECTORS = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)


def test_equal_embeddings_are_perfect() -> None:
    found = embedding_fidelity(VECTORS, VECTORS * 3, seed=0)
    assert (found.interval.low, found.worst, found.examples) == pytest.approx((1, 1, 50))
    assert found.notes["nearest_neighbour_agreement"]["estimate"] == 1


def test_worst_example_is_seen_through_the_mean() -> None:
    spoilt = VECTORS.copy()
    spoilt[7] *= -1
    found = embedding_fidelity(VECTORS, spoilt, seed=0)
    assert found.worst == pytest.approx(-1)
    assert found.interval.estimate == pytest.approx(1 - 2 / 50)
    assert found.interval.low < found.interval.estimate < found.interval.high


def test_zero_vectors() -> None:
    zeros = np.zeros((2, 4), np.float32)
    assert embedding_fidelity(zeros, zeros, seed=0).worst == 1
    assert embedding_fidelity(zeros, np.ones((2, 4), np.float32), seed=0).worst == 0


def test_agreement_counts_predictions() -> None:
    logits = np.eye(4, dtype=np.float32).repeat(25, axis=0)
    changed = logits.copy()
    changed[:5] = changed[:5][:, ::-1]
    found = classification_fidelity(logits, changed)
    assert found.interval.estimate == pytest.approx(0.95)
    assert found.notes["changed_predictions"] == 5
    assert found.worst < 1


def test_not_a_number_is_no_fidelity() -> None:
    found = compare(Task.EMBEDDING, Answers(VECTORS), Answers(np.full_like(VECTORS, np.nan), is_finite=False), seed=0)
    assert found.interval.high == 0


def test_tokens_agree_by_example() -> None:
    before = Answers(predictions=[np.arange(4), np.arange(6)])
    after = Answers(predictions=[np.arange(4), np.array([0, 1, 2, 0, 0, 0])])
    found = compare(Task.TOKEN_CLASSIFICATION, before, after, seed=0)
    assert found.interval.estimate == pytest.approx(7 / 10)
    assert (found.worst, found.examples, found.notes["changed_tokens"]) == (0.5, 2, 3)


def test_neighbours_are_found_in_any_part_of_many_examples() -> None:
    """Pairs that lie on both sides of what is compared at once."""
    half = np.random.default_rng(3).normal(size=(1100, 16)).astype(np.float32)
    vectors = np.concatenate([half, half + 0.001])
    assert retrieval_agreement(vectors, 2 * vectors).estimate == 1
    assert retrieval_agreement(vectors, np.concatenate([half, half[::-1]])).estimate < 0.1
