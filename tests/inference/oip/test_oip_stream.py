"""A stream's requests: side by side, answered in order, bounded, and nothing left behind."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from services.inference.oip.stream import Stream


class Held:
    """Answers a request once the test lets it; tells what runs."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.most = 0
        self.gates: dict[int, asyncio.Event] = {}
        self.begun = asyncio.Queue[int]()

    async def __call__(self, request: int) -> int:
        self.running.add(request)
        self.most = max(self.most, len(self.running))
        self.begun.put_nowait(request)
        try:
            await self.gates.setdefault(request, asyncio.Event()).wait()
            if request < 0:
                raise ValueError(request)
            return request * 10
        finally:
            self.running.discard(request)

    def open(self, *requests: int) -> None:
        for request in requests:
            self.gates.setdefault(request, asyncio.Event()).set()


async def sent(requests: Sequence[int], then: asyncio.Event | None = None) -> AsyncIterator[int]:
    for request in requests:
        yield request
    if then is not None:
        await then.wait()


async def test_requests_run_side_by_side_and_are_answered_in_order() -> None:
    held = Held()
    stream = Stream(sent([1, 2, 3]), held, ahead=8, idle_s=60)
    found = asyncio.ensure_future(anext(answers := stream.answers()))
    assert [await held.begun.get() for _ in range(3)] == [1, 2, 3]
    held.open(3, 2)
    await asyncio.sleep(0)
    assert not found.done()
    held.open(1)
    assert [await found, *[answer async for answer in answers]] == [10, 20, 30]


async def test_no_more_than_the_bound_are_under_way() -> None:
    held = Held()
    requests = list(range(1, 20))
    held.open(*requests)
    answers = [answer async for answer in Stream(sent(requests), held, ahead=3, idle_s=60).answers()]
    assert answers == [10 * request for request in requests]
    assert held.most <= 3


async def test_a_reader_that_waits_holds_requests_back() -> None:
    held = Held()
    requests = list(range(1, 20))
    held.open(*requests)
    answers = Stream(sent(requests), held, ahead=2, idle_s=60).answers()
    await anext(answers)
    for _ in range(20):
        await asyncio.sleep(0)
    assert held.begun.qsize() == 2  # the one answered is released when the next is asked for
    await answers.aclose()


async def test_a_failure_is_raised_in_its_turn_and_ends_the_rest() -> None:
    held = Held()
    held.open(1, -2)
    answers = Stream(sent([1, -2, 3]), held, ahead=8, idle_s=60).answers()
    assert await anext(answers) == 10
    with pytest.raises(ValueError, match="-2"):
        await anext(answers)
    assert not held.running


async def test_whoever_leaves_leaves_nothing_running() -> None:
    held, silent = Held(), asyncio.Event()
    stream = Stream(sent([1, 2], silent), held, ahead=8, idle_s=60)
    task = asyncio.ensure_future(anext(stream.answers()))
    await held.begun.get()
    await held.begun.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(5):
        await asyncio.sleep(0)
    assert not held.running
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_stop_answers_what_was_taken() -> None:
    held, silent = Held(), asyncio.Event()
    stream = Stream(sent([1, 2], silent), held, ahead=8, idle_s=60)
    answers = stream.answers()
    first = asyncio.ensure_future(anext(answers))
    await held.begun.get()
    await held.begun.get()
    stream.stop()
    held.open(1, 2)
    assert [await first, *[answer async for answer in answers]] == [10, 20]
    assert stream.stopped


async def test_a_stream_stopped_before_it_is_read_takes_nothing() -> None:
    stream = Stream(sent([1]), Held(), ahead=8, idle_s=60)
    stream.stop()
    assert [answer async for answer in stream.answers()] == []


async def test_silence_ends_the_stream_after_the_answers() -> None:
    held, silent = Held(), asyncio.Event()
    held.open(1)
    answers = Stream(sent([1], silent), held, ahead=8, idle_s=0.01).answers()
    assert await anext(answers) == 10
    with pytest.raises(TimeoutError, match="no request came"):
        await anext(answers)
