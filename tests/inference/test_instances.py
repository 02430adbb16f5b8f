"""Instances that hang, die or fail: who is harmed, who goes on, and what takes their place."""

import asyncio
import math
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.backends import Array, Backend, BackendDied, LoadError, RunError
from services.chassis.faults import Unavailable
from services.inference.backoff import Backoff
from services.inference.batching import Policy
from services.inference.engine import Engine
from services.inference.host import MOST_HUNG, Host
from services.inference.instances import Care, Hung
from services.inference.layout import TextLayout
from services.inference.metrics import Metrics
from services.inference.service_time import ServiceTime
from services.inference.tickets import Item, Ticket
from tests.inference.fakes import OUTPUT, WAIT_S, FakeClock, HeldBackend, checksum
from tests.models import minilm_signature

Ids = list[int]
LONG_S = 1000.0  # beyond any patience with a batch


class Brisk(ServiceTime):
    """Predicts that a batch takes a millisecond, whatever it took."""

    def predict(self, rows: int, longest: int) -> float:
        return 0.001

    def learn(self, rows: int, longest: int, seconds: float) -> None:
        pass


def working() -> HeldBackend:
    backend = HeldBackend()
    backend.gate.set()
    return backend


class Spares:
    """A source of backends made beforehand; an exception among them is a load that fails."""

    def __init__(self, *spares: Backend | Exception, is_sound: bool = False) -> None:
        self.replaced: list[int] = []
        self._spares = iter(spares)
        self._is_sound = is_sound

    def replace(self, number: int, broken: Backend) -> Backend:
        self.replaced.append(number)
        spare = next(self._spares)
        if isinstance(spare, Exception):
            raise spare
        return spare

    def probe(self, backend: Backend) -> None:
        if not self._is_sound:
            raise RunError("it answers nothing")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def host() -> Host:
    return Host()


Start = Callable[..., Engine]


@pytest.fixture
async def start(clock: FakeClock, host: Host) -> AsyncIterator[Start]:
    """`start([backends], Spares(…))`: an engine that is closed at the end."""
    running: list[tuple[Engine, Sequence[HeldBackend]]] = []

    def make(
        backends: Sequence[HeldBackend], source: Spares | None = None, cores: Sequence[Sequence[int]] = (), max_rows: int = 32
    ) -> Engine:
        backoff = partial(Backoff, first_s=0.001, most_s=0.002)
        care = Care(source, hang_s=0.01, cores=cores, host=host, backoff=backoff, close_s=0.05)
        metrics = Metrics(CollectorRegistry())
        layout, limits = TextLayout(minilm_signature()), Policy(max_rows=max_rows)
        engine = Engine(backends, layout, limits, name="m", version=1, metrics=metrics, service_time=Brisk(), clock=clock, care=care)
        running.append((engine, backends))
        return engine

    yield make
    for engine, held in running:
        for backend in held:
            backend.gate.set()
        await engine.close()


def submit(engine: Engine, *rows: Ids) -> Ticket:
    return engine.submit([Item({"input_ids": np.array(row, np.int64)}, (OUTPUT,)) for row in rows], 0, math.inf)


async def answers(ticket: Ticket) -> list[int]:
    return [int(answer.outputs[OUTPUT][0]) for answer in await ticket.answers()]


def ask(engine: Engine, *rows: Ids) -> "asyncio.Task[list[int]]":
    return asyncio.create_task(answers(submit(engine, *rows)))


async def begun(backend: HeldBackend) -> None:
    assert await asyncio.to_thread(backend.begun.acquire, timeout=WAIT_S)


async def live(engine: Engine, instances: int) -> None:
    """Returns when so many instances run batches."""
    async with asyncio.timeout(WAIT_S):
        while engine.live_instances != instances:  # noqa: ASYNC110  an instance comes back without a sign of its own
            await asyncio.sleep(0.001)


async def test_a_hung_batch_fails_and_the_instance_is_replaced(start: Start, clock: FakeClock, host: Host) -> None:
    hung, spare = HeldBackend(), working()
    source = Spares(spare)
    engine = start([hung], source)
    caller = ask(engine, [1])
    await begun(hung)
    clock.now_s += LONG_S
    with pytest.raises(Hung):
        await caller
    await live(engine, 1)
    assert await ask(engine, [2]) == [checksum([2])]
    assert (source.replaced, spare.ran, hung.closed) == ([0], [[2]], True)
    assert engine.trouble == ""
    assert host.hung_threads == 1
    hung.gate.set()  # what comes back too late answers nobody
    async with asyncio.timeout(WAIT_S):
        while host.hung_threads:  # noqa: ASYNC110  a thread's end has no sign of its own
            await asyncio.sleep(0.001)
    assert hung.ran == [[1]]


async def test_a_batch_that_is_long_and_not_too_long_is_answered(start: Start, clock: FakeClock) -> None:
    backend = HeldBackend()
    engine = start([backend])
    caller = ask(engine, [1])
    await begun(backend)
    clock.now_s += 0.009
    await asyncio.sleep(0.05)  # several looks of the watchdog; a shorter wait could only hide a fault
    backend.gate.set()
    assert await caller == [checksum([1])]


async def test_the_others_go_on_while_one_instance_hangs(start: Start, clock: FakeClock) -> None:
    hung, other = HeldBackend(), HeldBackend()
    engine = start([hung, other])
    doomed = ask(engine, [1])
    await begun(hung)
    running = ask(engine, [2])
    await begun(other)
    clock.now_s += LONG_S
    other.gate.set()
    with pytest.raises(Hung):
        await doomed
    assert await running == [checksum([2])]
    assert engine.live_instances == 1
    assert "1 of 2 instances" in engine.trouble
    assert await ask(engine, [3]) == [checksum([3])]


async def test_what_was_prepared_behind_a_hung_batch_runs_elsewhere(start: Start, clock: FakeClock) -> None:
    hung, other = HeldBackend(), HeldBackend()
    engine = start([hung, other], max_rows=1)
    doomed = ask(engine, [1])
    await begun(hung)
    callers = [ask(engine, [number]) for number in range(2, 8)]
    await begun(other)  # [2] runs there; one more is prepared for each
    other.gate.set()
    clock.now_s += LONG_S
    with pytest.raises(Hung):
        await doomed
    assert await asyncio.gather(*callers) == [[checksum([number])] for number in range(2, 8)]
    assert hung.ran == [[1]]


async def test_with_no_instance_left_callers_are_told_when_to_come_back(start: Start, clock: FakeClock, host: Host) -> None:
    hung = HeldBackend()
    engine = start([hung], max_rows=1)
    doomed, prepared, queued = (ask(engine, [number]) for number in (1, 2, 3))
    await begun(hung)
    clock.now_s += LONG_S
    with pytest.raises(Hung):
        await doomed
    for waiting in (prepared, queued):
        with pytest.raises(Unavailable, match="being restarted") as refused:
            await waiting
        assert refused.value.retry_after_s
    with pytest.raises(Unavailable, match="1 of 1 instances lost, the last one hung"):
        submit(engine, [4])
    assert engine.queued_rows == 0
    assert host.changed.is_set()


class Dying(HeldBackend):
    """Its process ends at 13, or when told to; then every run fails."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.set()
        self.dead = False
        self.die: Callable[[], None] = lambda: None

    def when_dead(self, tell: Callable[[], None]) -> None:
        self.die = tell

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        self.dead = self.dead or 13 in inputs["input_ids"]
        if self.dead:
            raise BackendDied("killed")
        return super().run(inputs, outputs)


async def test_a_backend_that_dies_fails_its_batch_alone_and_is_replaced(start: Start) -> None:
    source = Spares(Dying())
    engine = start([Dying()], source)
    assert await ask(engine, [1]) == [checksum([1])]
    with pytest.raises(BackendDied):
        await ask(engine, [13])
    await live(engine, 1)
    assert await ask(engine, [2]) == [checksum([2])]
    assert source.replaced == [0]


async def test_a_backend_that_dies_idle_costs_nobody_an_answer(start: Start) -> None:
    dying = Dying()
    source = Spares(working())
    engine = start([dying], source)
    dying.dead = True
    await asyncio.to_thread(dying.die)
    await live(engine, 0)
    await live(engine, 1)
    assert await ask(engine, [1]) == [checksum([1])]
    assert dying.closed


def fail(rows: list[Ids]) -> None:
    raise RunError("broken")


async def test_a_backend_that_fails_a_right_batch_too_is_replaced(start: Start) -> None:
    broken = HeldBackend(fail)
    broken.gate.set()
    source = Spares(working())
    engine = start([broken], source)
    for _ in range(3):
        with pytest.raises(RunError, match="broken"):
            await ask(engine, [1])
    await live(engine, 0)
    await live(engine, 1)
    assert await ask(engine, [2]) == [checksum([2])]
    assert (source.replaced, len(broken.batches)) == ([0], 3)


async def test_one_that_fails_bad_batches_alone_stays(start: Start) -> None:
    def refuse_13(rows: list[Ids]) -> None:
        if [13] in rows:
            raise RunError("13 is not taken")

    backend = HeldBackend(refuse_13)
    backend.gate.set()
    source = Spares(is_sound=True)
    engine = start([backend], source)
    for _ in range(10):
        with pytest.raises(RunError, match="13"):
            await ask(engine, [13])
    assert await ask(engine, [2]) == [checksum([2])]
    assert source.replaced == []


async def test_a_replacement_that_fails_to_load_is_tried_again(start: Start) -> None:
    source = Spares(LoadError("no memory"), OSError("no disk"), working())
    engine = start([Dying()], source)
    with pytest.raises(BackendDied):
        await ask(engine, [13])
    await live(engine, 1)
    assert source.replaced == [0, 0, 0]
    assert await ask(engine, [1]) == [checksum([1])]


async def test_a_close_does_not_wait_for_what_hangs(start: Start) -> None:
    hung = HeldBackend()
    engine = start([hung], max_rows=1)
    running, waiting = ask(engine, [1]), ask(engine, [2])
    await begun(hung)
    async with asyncio.timeout(WAIT_S / 2):
        await engine.close()
    for caller in (running, waiting):
        with pytest.raises(Unavailable):
            await caller
    assert hung.closed


async def test_a_backend_that_dies_while_it_is_closed_is_not_replaced(start: Start) -> None:
    class DyingLate(HeldBackend):
        def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
            super().run(inputs, outputs)
            raise BackendDied("killed")

    backend, source = DyingLate(), Spares(working())
    engine = start([backend], source)
    caller = ask(engine, [1])
    await begun(backend)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    backend.gate.set()
    await closing
    with pytest.raises((BackendDied, Unavailable)):
        await caller
    assert source.replaced == []


async def test_a_drain_ends_when_nobody_waits_for_what_hangs(start: Start) -> None:
    hung = HeldBackend()
    engine = start([hung])
    caller = ask(engine, [1])
    await begun(hung)
    drained = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    assert not drained.done()
    caller.cancel()
    with suppress(asyncio.CancelledError):
        await caller
    await asyncio.wait_for(drained, WAIT_S)


async def test_a_close_while_a_replacement_is_loaded_frees_it(start: Start) -> None:
    spare, loading, go_on = HeldBackend(), threading.Event(), threading.Event()

    class Slow(Spares):
        def replace(self, number: int, broken: Backend) -> Backend:
            loading.set()
            assert go_on.wait(WAIT_S)
            return super().replace(number, broken)

    engine = start([Dying()], Slow(spare))
    with pytest.raises(BackendDied):
        await ask(engine, [13])
    assert await asyncio.to_thread(loading.wait, WAIT_S)
    await engine.close()
    go_on.set()
    async with asyncio.timeout(WAIT_S):
        while not spare.closed:  # noqa: ASYNC110  its thread belongs to nobody any more
            await asyncio.sleep(0.001)


async def test_a_process_in_which_too_much_hangs_is_given_up(start: Start, clock: FakeClock, host: Host) -> None:
    hanging = [HeldBackend() for _ in range(MOST_HUNG)]
    engine = start(hanging, Spares(*(HeldBackend() for _ in hanging)), max_rows=1)
    callers = [ask(engine, [number]) for number in range(1, MOST_HUNG + 1)]
    for backend in hanging:
        await begun(backend)
    assert not host.given_up.is_set()
    clock.now_s += LONG_S
    for found in await asyncio.gather(*callers, return_exceptions=True):
        assert isinstance(found, Hung)
    await asyncio.wait_for(host.given_up.wait(), WAIT_S)


class Placed(HeldBackend):
    """Notes on which cores it runs."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        self.cores = os.sched_getaffinity(0)
        return super().run(inputs, outputs)


async def test_pinned_instances_run_on_their_own_cores(start: Start) -> None:
    cores = [(core,) for core in sorted(os.sched_getaffinity(0))[:2]]
    placed = [Placed() for _ in cores]
    engine = start(placed, cores=cores, max_rows=1)
    callers = [ask(engine, [number]) for number in range(len(placed))]
    for backend in placed:
        await begun(backend)
        backend.gate.set()
    await asyncio.gather(*callers)
    assert [backend.cores for backend in placed] == [set(own) for own in cores]
