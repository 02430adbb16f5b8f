import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.fidelity import bootstrap_mean, classification_fidelity, compare, embedding_fidelity, wilson
from services.repository.manifest import Task

VECTORS = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)


def test_equal_embeddings_are_perfect() -> None:
    found = embedding_fidelity(VECTORS, VECTORS * 3, seed=0)
    assert (found.interval.low, found.worst, found.examples) == pytest.approx((1, 1, 50))
    assert found.notes["nearest_neighbour_agreement"] == 1


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
    found = compare(Task.EMBEDDING, VECTORS, np.full_like(VECTORS, np.nan), seed=0)
    assert found.interval.high == 0


def test_wilson_against_a_published_value() -> None:
    found = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@given(st.integers(1, 1000), st.data())
def test_wilson_holds_its_estimate_and_stays_a_share(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    found = wilson(successes, trials)
    assert 0 <= found.low <= found.estimate + 1e-12
    assert found.estimate <= found.high + 1e-12
    assert found.high <= 1
    assert found.high > found.low


def test_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    intervals = [bootstrap_mean(random.normal(5, 2, 60), seed) for seed in range(100)]
    covered = sum(interval.low <= 5 <= interval.high for interval in intervals)
    assert 86 <= covered <= 100
