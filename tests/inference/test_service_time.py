import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.service_time import ServiceTime


def test_learns_the_line_that_made_the_samples() -> None:
    model = ServiceTime()
    for size in range(1, 60):
        model.learn(size % 8 + 1, size, 0.002 + 3e-5 * (size % 8 + 1) * size)
    assert model.predict(16, 50) == pytest.approx(0.002 + 3e-5 * 800, rel=1e-6)


def test_follows_a_machine_that_became_slower() -> None:
    model = ServiceTime()
    for speed in (1e-5, 5e-5):
        for step in range(400):
            model.learn(step % 10 + 1, 20, 0.001 + speed * (step % 10 + 1) * 20)
    assert model.predict(10, 20) == pytest.approx(0.001 + 5e-5 * 200, rel=0.02)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 512), st.floats(1e-6, 10)), max_size=60))
def test_predicts_something_positive_whatever_was_measured(samples: list[tuple[int, int, float]]) -> None:
    model = ServiceTime()
    for rows, longest, seconds in samples:
        model.learn(rows, longest, seconds)
    assert 0 < model.predict(8, 32) <= model.predict(16, 64) + 1e-12
