"""What a worker tells of what it is told, by a clock of the test's own; and the thread that tells the last of it."""

import io
import json
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.jobs.job import Told
from services.optimization.jobs.telling import BURST_LINES, EVENTS_PER_SECOND, Teller, Thinner, read_line

POINTS = st.builds(
    Told, stage=st.sampled_from("ab"), fraction=st.just(0.0), message=st.just(""), step=st.integers(0, 99), metrics=st.just({"loss": 1.0})
)
LINES = st.builds(Told, stage=st.sampled_from("ab"), fraction=st.just(0.0), message=st.text("xy", min_size=1, max_size=3))
STORIES = st.lists(st.tuples(st.one_of(POINTS, LINES), st.floats(0, 0.5)), max_size=120)


def told_by(story: list[tuple[Told, float]]) -> list[tuple[float, Told]]:
    """Everything with its time; the clock goes on in steps of at most 1/20 s, as a thread polls."""
    thinner, now, found = Thinner(), 0.0, []
    for told, gap in story:
        until = now + gap
        while (wait := thinner.wait(now)) is not None and now + wait < until:
            now += wait
            found += [(now, each) for each in thinner.poll(now)]
        now = until
        found += [(now, each) for each in thinner.add(told, now)]
    return found + [(now, each) for each in thinner.rest()]


@given(STORIES)
def test_every_line_is_told_once_in_order(story: list[tuple[Told, float]]) -> None:
    lines = [line for _, told in told_by(story) if told.message for line in told.message.split("\n")]
    assert lines == [told.message for told, _ in story if told.message]


@given(STORIES)
def test_the_last_point_of_every_curve_is_told_and_steps_keep_their_order(story: list[tuple[Told, float]]) -> None:
    for stage in "ab":
        asked = [told.step for told, _ in story if told.stage == stage and not told.message]
        found = [told.step for _, told in told_by(story) if told.stage == stage and not told.message]
        assert found[-1:] == asked[-1:]
        rest = iter(asked)
        assert all(step in rest for step in found)  # a subsequence


def test_a_training_of_a_thousand_steps_a_second_is_thinned_evenly() -> None:
    story = [(Told("training", 0, "", step, {"loss": 1 / step}), 0.001) for step in range(1, 10_001)]
    story[5_000:5_000] = [(Told("training", 0, "", 5_000, {"validation_loss": 0.5}), 0.001)]
    found = told_by(story)
    losses = [told.step for _, told in found if "loss" in told.metrics]
    assert 0.9 * 10 * EVENTS_PER_SECOND <= len(losses) <= 10 * EVENTS_PER_SECOND + 2
    assert max(after - before for before, after in pairwise(losses)) <= 1.2 * 1000 / EVENTS_PER_SECOND
    assert [told.step for _, told in found if "validation_loss" in told.metrics] == [5_000]


def test_a_flood_of_lines_is_told_together() -> None:
    found = told_by([(Told("searching", number / 1000, f"line {number}"), 0.001) for number in range(1000)])
    assert len(found) <= BURST_LINES + 2 * EVENTS_PER_SECOND
    assert [told.fraction for _, told in found] == sorted(told.fraction for _, told in found)


def test_a_few_lines_are_told_at_once_each_by_itself() -> None:
    thinner = Thinner()
    for number in range(int(BURST_LINES)):
        line = Told("optimizing", 0, str(number))
        assert thinner.add(line, 0.0) == [line]
    assert thinner.add(Told("optimizing", 0, "one too many"), 0.0) == []
    assert thinner.wait(0.0) == pytest.approx(1 / EVENTS_PER_SECOND)


class Signalled(io.StringIO):
    """Tells when it was flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.flushes = threading.Semaphore(0)

    def flush(self) -> None:
        self.flushes.release()


def test_what_was_held_back_is_told_while_the_caller_is_busy() -> None:
    stream = Signalled()
    teller = Teller(stream)
    teller("training", 0.5, "", step=1, metrics={"loss": 2})
    teller("training", 0.5, "", step=2, metrics={"loss": 1})
    assert stream.flushes.acquire(timeout=30)
    assert stream.flushes.acquire(timeout=30)  # by the thread: this one calls nothing more
    found = [read_line(line.encode()) for line in stream.getvalue().splitlines()]
    assert [(told.step, told.metrics) for told in found] == [(1, {"loss": 1 + 1}), (2, {"loss": 1})]
    teller.close()


def test_closing_tells_the_rest() -> None:
    stream = io.StringIO()
    teller = Teller(stream)
    teller("a", 0.25, "line")
    teller("a", 0.5, "", step=3, metrics={"loss": float("nan")})
    teller.close()
    lines = stream.getvalue().splitlines()
    assert json.loads(lines[0]) == {"stage": "a", "fraction": 0.25, "message": "line", "step": 0, "metrics": {}}
    assert read_line(lines[1].encode()).metrics["loss"] != 0
