"""Calls that could not be answered in time: refused on arrival, or dropped before they run."""

import asyncio
import math
from collections.abc import AsyncIterator

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.chassis.faults import DeadlineMissed, Overloaded
from services.inference.batching import Policy
from services.inference.engine import Engine
from services.inference.layout import TextLayout
from services.inference.metrics import Metrics
from services.inference.service_time import ServiceTime
from services.inference.tickets import Item, Ticket
from tests.inference.fakes import OUTPUT, WAIT_S, FakeClock, HeldBackend
from tests.models import minilm_signature

ROW_S = 0.1


def experienced() -> ServiceTime:
    """Knows for sure that each row takes a tenth of a second."""
    service_time = ServiceTime()
    for batch in range(200):
        service_time.learn(batch % 4 + 1, 3, ROW_S * (batch % 4 + 1))
    return service_time


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend() -> HeldBackend:
    return HeldBackend()


@pytest.fixture
async def engine(clock: FakeClock, backend: HeldBackend) -> AsyncIterator[Engine]:
    """One instance that is busy for 0.1 s with a row of its own."""
    running = make(backend, clock, experienced())
    first = submit(running)
    assert await asyncio.to_thread(backend.begun.acquire, timeout=WAIT_S)
    yield running
    backend.gate.set()
    await first.answers()
    await running.close()


def make(backend: HeldBackend, clock: FakeClock, service_time: ServiceTime) -> Engine:
    return Engine(
        [backend],
        TextLayout(minilm_signature()),
        Policy(max_rows=1, queue_rows=8, max_age_s=1000),
        name="m",
        version=1,
        metrics=Metrics(CollectorRegistry()),
        service_time=service_time,
        clock=clock,
    )


def submit(engine: Engine, deadline: float = math.inf, *, rows: int = 1, priority: int = 0, flight: bytes | None = None) -> Ticket:
    return engine.submit([Item({"input_ids": np.array([1, 2, 3])}, (OUTPUT,), flight) for _ in range(rows)], priority, deadline)


async def test_a_call_that_would_be_late_is_refused_at_once_and_told_why(engine: Engine, clock: FakeClock) -> None:
    with pytest.raises(DeadlineMissed, match=r"would finish in about \d+ ms, the deadline is in 150 ms"):
        submit(engine, clock.now_s + 0.15)
    assert engine.queued_rows == 0
    assert engine.statistics.refused_requests == 1


async def test_a_call_that_will_be_in_time_is_taken(engine: Engine, clock: FakeClock) -> None:
    submit(engine, clock.now_s + 0.25)


async def test_what_waits_is_reckoned_with_and_what_is_less_urgent_is_not(engine: Engine, clock: FakeClock) -> None:
    waiting = submit(engine, rows=5)  # one of them is prepared
    with pytest.raises(DeadlineMissed):
        submit(engine, clock.now_s + 0.35)
    submit(engine, clock.now_s + 0.35, priority=1)
    assert len(waiting.rows) == 5


async def test_what_joins_a_waiting_row_is_not_refused(engine: Engine, clock: FakeClock) -> None:
    submit(engine, flight=b"same")
    submit(engine, clock.now_s + 0.05, flight=b"same")


async def test_a_full_queue_is_told_with_when_to_come_back(engine: Engine, clock: FakeClock) -> None:
    submit(engine, rows=6)
    with pytest.raises(Overloaded) as refused:
        submit(engine, clock.now_s + 0.05, rows=8)
    assert refused.value.retry_after_s == pytest.approx(0.6, rel=0.3)


async def test_nothing_is_refused_before_enough_batches_ran(backend: HeldBackend, clock: FakeClock) -> None:
    fresh = make(backend, clock, ServiceTime())
    backend.gate.set()
    await submit(fresh, clock.now_s + 1e-6).answers()
    await fresh.close()


async def test_a_row_that_has_become_too_late_is_dropped_before_it_runs(engine: Engine, backend: HeldBackend, clock: FakeClock) -> None:
    prepared, late = submit(engine, rows=1), submit(engine, clock.now_s + 0.45)
    await asyncio.sleep(0)  # the first is prepared
    clock.now_s += 0.4  # what runs has taken longer than predicted: 50 ms are left for a run of 100
    backend.gate.set()
    with pytest.raises(DeadlineMissed, match="would pass before the answer"):
        await late.answers()
    await prepared.answers()
    assert len(backend.ran) == 2


async def test_a_deadline_that_passes_is_told_at_once_though_every_instance_has_its_hands_full(
    engine: Engine, backend: HeldBackend, clock: FakeClock
) -> None:
    submit(engine)
    late = submit(engine, clock.now_s + 0.5)
    await asyncio.sleep(0)
    clock.now_s += 0.6
    with pytest.raises(DeadlineMissed, match="passed in the queue"):
        await asyncio.wait_for(late.answers(), WAIT_S)
    assert not backend.gate.is_set()
