import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.evaluation.intervals import bootstrap_mean, mcnemar, paired_difference, resampled_sums, two_sided, wilson


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


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"), [(0, 0, 1.0), (5, 5, 1.0), (1, 9, 0.021484375), (0, 10, 0.001953125), (6, 16, 0.0524788)]
)
def test_mcnemar_against_the_binomial(gained: int, lost: int, p_value: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p_value, rel=1e-5)
    assert mcnemar(lost, gained) == pytest.approx(p_value, rel=1e-5)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(600, 5000))
def test_paired_difference_holds_its_sign_and_narrows(gained: int, lost: int, examples: int) -> None:
    found, wider = paired_difference(gained, lost, examples), paired_difference(lost, gained, examples)
    assert found.low <= found.estimate <= found.high or abs(found.estimate) < 3 / examples
    assert (found.low, found.high) == pytest.approx((-wider.high, -wider.low))
    again = paired_difference(4 * gained, 4 * lost, 4 * examples)
    assert again.high - again.low < found.high - found.low


def test_paired_difference_covers_as_often_as_it_says() -> None:
    random, covered = np.random.default_rng(2), 0
    for _ in range(1000):
        gained, lost, _ = random.multinomial(400, [0.03, 0.05, 0.92])
        found = paired_difference(gained, lost, 400)
        covered += found.low <= -0.02 <= found.high
    assert covered > 930


def test_one_seed_draws_the_same_examples_for_both() -> None:
    counts = np.random.default_rng(0).normal(size=(70, 2))
    assert (resampled_sums(counts, 3) == resampled_sums(counts, 3)).all()
    assert np.allclose(resampled_sums(2 * counts, 3), 2 * resampled_sums(counts, 3))


def test_two_sided_never_claims_certainty() -> None:
    assert 0 < two_sided(np.ones(2000)) < 0.01
    assert two_sided(np.array([-1.0, 1.0] * 50)) == 1
