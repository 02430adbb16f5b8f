"""A version's instances, watched, and replaced when they hang, die or fail again and again."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import structlog

from services.backends import Backend, BackendDied, BackendError
from services.inference.backoff import Backoff
from services.inference.host import Host
from services.inference.instance import Handed, Instance, Loss, Ran
from services.inference.layout import Layout
from services.inference.threads import Worker

log = structlog.get_logger("hone.instances")

SECOND_LOOK = 0.1  # of the time after which a batch hangs: a service that was paused must not take its own pause for a hang
RESTART_S = 2.0  # what a caller is told that a replacement takes
RETURN_S = 0.2  # for the thread of an instance that is lost, once its process is killed
_NOBODYS = Context()  # the watchdog's lines in the log must not carry the id of the call that happened to arm it


class Hung(BackendError):
    """A batch ran far longer than batches do; its instance was given up."""


class Source(Protocol):
    """Where a version's backends come from. Called in the instances' threads."""

    def replace(self, number: int, broken: Backend) -> Backend:
        """A backend in the place of one that is given up and closed. Raises what loading raises."""

    def probe(self, backend: Backend) -> None:
        """Runs a batch that is known to be right. Raises where the backend does not answer it."""


@dataclass(frozen=True, slots=True)
class Care:
    """How instances are looked after; without a source, one that is lost is not replaced. `cores[number]` are an instance's own."""

    source: Source | None = None
    hang_s: float = 30.0
    cores: Sequence[Sequence[int]] = ()
    host: Host = field(default_factory=Host)
    backoff: Callable[[], Backoff] = Backoff
    close_s: float = 2.0  # for a batch that nobody waits for any more


class Instances:
    """Those of one version. `ended` is called for each batch, `lost` for what an instance leaves, `back` when one is there again."""

    def __init__(
        self,
        backends: Sequence[Backend],
        layout: Layout,
        care: Care,
        *,
        name: str,
        clock: Callable[[], float],
        ended: Callable[[Instance, Ran], None],
        lost: Callable[[Instance, Loss, Exception], None],
        back: Callable[[], None],
    ) -> None:
        self._layout, self._care, self._name, self._clock = layout, care, name, clock
        self._ended, self._lost, self._back = ended, lost, back
        self._loop = asyncio.get_running_loop()
        self._backoffs = [care.backoff() for _ in backends]
        self._revivals: set[asyncio.Task[None]] = set()
        self._watchdog: asyncio.TimerHandle | None = None
        self._retry_at = 0.0
        self._closed = False
        self.trouble = ""  # why instances are missing, for people
        self.size = len(backends)
        self.live = [self._instance(number, backend, self._worker(number)) for number, backend in enumerate(backends)]

    @property
    def retry_after_s(self) -> float:
        """When the next replacement is about to be there."""
        return max(0.0, self._retry_at - self._clock()) + RESTART_S

    def told(self, instance: Instance, ran: Ran) -> None:
        """From an instance's thread: a batch has ended."""
        self._call_soon(self._finish, instance, ran)

    def _call_soon(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # what hung came back after the loop was closed: nobody waits for it
            log.debug("too late for the service", name=self._name)

    def is_sound(self, backend: Backend) -> bool:
        """From an instance's thread: whether a backend answers a batch that is known to be right."""
        try:
            if self._care.source is not None:
                self._care.source.probe(backend)
        except Exception as error:  # whatever it is, it is no bad input's fault
            log.warning("a right batch fails", name=self._name, error=str(error))
            return False
        return True

    def watch(self) -> None:
        """Looks after hung batches from now on; one timer, however many batches run before it fires."""
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(self._care.hang_s, self._look, context=_NOBODYS)

    def _look(self) -> None:
        self._watchdog = None
        now, hang_s = self._clock(), self._care.hang_s
        for instance in [instance for instance in self.live if instance.hung_at(hang_s) <= now]:
            if instance.suspected is instance.handed[0]:
                self._lose(instance, Loss.HUNG, Hung(f"a batch of {self._name} hung for {hang_s:g} s or more"))
            else:
                instance.suspected = instance.handed[0]
        if any(instance.handed for instance in self.live):
            nearest = min(instance.hung_at(hang_s) for instance in self.live) - now
            self._watchdog = self._loop.call_later(min(hang_s, max(SECOND_LOOK * hang_s, nearest)), self._look, context=_NOBODYS)

    def _finish(self, instance: Instance, ran: Ran) -> None:
        if instance.lost:
            return
        self._ended(instance, ran)
        instance.end(self._clock())
        if ran.loss is not None:
            self._lose(instance, ran.loss, BackendDied("the backend is lost"))

    # Losing and replacing

    def _instance(self, number: int, backend: Backend, worker: Worker) -> Instance:
        instance = Instance(number, backend, worker, self, self._layout, self._clock)
        when_dead = getattr(backend, "when_dead", None)
        if when_dead is not None:  # it lives in a process, which may end between two batches
            when_dead(partial(self._call_soon, self._died, instance))
        return instance

    def _worker(self, number: int) -> Worker:
        cores = self._care.cores[number] if self._care.cores else ()
        return Worker(f"{self._name}-{number}", cores)

    def _died(self, instance: Instance) -> None:
        """Its process ended; where a batch was running, that batch tells it too."""
        if not instance.handed:
            self._lose(instance, Loss.DIED, BackendDied("the backend's process ended"))

    def _lose(self, instance: Instance, loss: Loss, error: Exception) -> None:
        if instance.lost or self._closed:
            return
        instance.lost = True
        self.live.remove(instance)
        self.trouble = f"{self.size - len(self.live)} of {self.size} instances lost, the last one {loss}"
        log.error("an instance is lost", name=self._name, number=instance.number, loss=loss.value, left=len(self.live))
        instance.worker.stop()
        self._lost(instance, loss, error)
        task = self._loop.create_task(self._revive(instance))
        self._revivals.add(task)
        task.add_done_callback(self._revivals.discard)
        self._care.host.changed.set()

    async def _revive(self, lost: Instance) -> None:
        worker = self._worker(lost.number)
        try:
            await asyncio.shield(asyncio.wrap_future(worker.call(partial(self._bury, lost))))
            if lost.worker.thread.is_alive():
                self._care.host.abandon(lost.worker.thread)
            backend = await self._replacement(lost, worker)
        except BaseException:
            worker.stop()
            raise
        if backend is None:
            worker.stop()
            return
        self.live.append(self._instance(lost.number, backend, worker))
        self.live.sort(key=lambda instance: instance.number)
        self.trouble = "" if len(self.live) == self.size else self.trouble
        log.info("an instance is back", name=self._name, number=lost.number, live=len(self.live))
        self._care.host.changed.set()
        self._back()

    def _bury(self, lost: Instance) -> None:
        """Closes its backend: where that ends a process, the thread that waits for it comes back."""
        lost.backend.close()
        lost.worker.join(RETURN_S)

    async def _replacement(self, lost: Instance, worker: Worker) -> Backend | None:
        source, backoff = self._care.source, self._backoffs[lost.number]
        while source is not None:
            delay_s = backoff.delay_s(time.monotonic())
            self._retry_at = self._clock() + delay_s
            await asyncio.sleep(delay_s)
            loading = worker.call(partial(source.replace, lost.number, lost.backend))
            try:
                return await asyncio.wrap_future(loading)
            except asyncio.CancelledError:
                loading.add_done_callback(_close)
                raise
            except Exception as error:  # kept out of the service's way, as a failing load is
                log.error("a lost instance could not be replaced yet", name=self._name, exc_info=error)
        return None

    async def close(self) -> list[Handed]:
        """Gives running batches a moment to end, then leaves them behind, and frees the weights. Answers what never ended."""
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        for task in self._revivals:
            task.cancel()
        await asyncio.gather(*self._revivals, return_exceptions=True)
        for instance in self.live:
            instance.worker.stop()
        closing = Worker(f"{self._name}-close")
        await asyncio.wrap_future(closing.call(self._end))
        closing.stop()
        for instance in self.live:
            if instance.worker.thread.is_alive():
                self._care.host.abandon(instance.worker.thread)
        await asyncio.sleep(0)  # what ended just now is told first
        return [handed for instance in self.live for handed in instance.handed]

    def _end(self) -> None:
        end = time.monotonic() + self._care.close_s
        for instance in self.live:
            if not instance.worker.join(end - time.monotonic()):
                log.warning("a batch that hangs is left behind", name=self._name, number=instance.number)
        for instance in self.live:
            instance.backend.close()


def _close(loading: "Future[Backend]") -> None:
    """A replacement that came too late, or not at all."""
    if not loading.cancelled() and loading.exception() is None:
        loading.result().close()
