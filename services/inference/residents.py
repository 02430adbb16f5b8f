"""The versions known to this replica and which of them are in memory: one load each however many ask, within the budget."""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import structlog

from services.chassis.faults import DeadlineMissed, Unavailable
from services.inference.loading import Loader
from services.inference.memory import give_back, held_bytes, total_bytes
from services.inference.metrics import Metrics
from services.inference.residency import Key, Resident, TooLarge, claim, to_unload
from services.inference.retries import Retries
from services.inference.served import ServedVersion, State
from services.inference.settings import InferenceSettings
from services.repository.store import Repository

log = structlog.get_logger("hone.models")

LOAD_S = 2.0  # a caller is asked to come back after so long while a version loads
MEMORY_SHARE = 0.6  # of the machine's: the rest is for batches, remembered answers and the neighbours


class Residents:
    """`settled` is called when a load or an unloading has ended, `gone` with each version that is unloaded for good.

    `clock` in seconds; `held` is how many bytes the process holds now, and tells by how much a load made it grow.
    """

    def __init__(
        self,
        repository: Repository,
        settings: InferenceSettings,
        metrics: Metrics,
        *,
        settled: Callable[[], None],
        gone: Callable[[ServedVersion], None],
        clock: Callable[[], float] = time.monotonic,
        held: Callable[[], int] = held_bytes,
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._settled = settled
        self._gone = gone
        self._clock = clock
        self._loader = Loader(repository, settings, metrics, held)
        self.host = self._loader.host
        self.limit_bytes = round(MEMORY_SHARE * total_bytes()) if settings.memory_bytes is None else settings.memory_bytes
        self._metrics = metrics
        metrics.models_limit_bytes.set(self.limit_bytes)
        self.pinned: set[Key] = set()  # loaded by LoadModel
        self._versions: dict[Key, ServedVersion] = {}
        self._loads: dict[Key, asyncio.Task[Exception | None]] = {}
        self._queued: set[Key] = set()  # loads that wait for room
        self._recalled: set[Key] = set()  # loads that calls began
        self._waiting: Counter[Key] = Counter()  # calls
        self._leaving: dict[asyncio.Task[None], ServedVersion] = {}
        self._freed = asyncio.Event()
        self._retries = Retries()

    # Reading

    def get(self, key: Key) -> ServedVersion | None:
        return self._versions.get(key)

    def all(self) -> list[ServedVersion]:
        """In the order of their names and numbers."""
        return [self._versions[key] for key in sorted(self._versions)]

    def keys(self) -> set[Key]:
        return set(self._versions)

    @property
    def bytes(self) -> int:
        """What the versions hold, those on their way in and out among them."""
        return sum(served.resident_bytes for served in {*self._versions.values(), *self._leaving.values()})

    def is_here(self, key: Key) -> bool:
        """Whether it is in memory or on its way there."""
        served = self._versions.get(key)
        return key in self._loads or (served is not None and served.resident_bytes > 0)

    def is_recalled(self, key: Key) -> bool:
        """Whether it is on its way because a call asked for it: others wait with it."""
        return key in self._recalled

    def is_pinned(self, served: ServedVersion) -> bool:
        """Whether LoadModel keeps it."""
        return (served.manifest.name, served.manifest.version) in self.pinned

    def may_retry(self, key: Key) -> bool:
        """Whether its last load succeeded, or failed long enough ago."""
        return self._retries.is_due(key, self._clock())

    def fits(self, key: Key) -> bool:
        """Whether it can be loaded with nothing unloaded."""
        coming = [served for each in {key, *self._queued} if not (served := self._versions[each]).resident_bytes]
        need = sum(self._loader.expected_bytes(served.manifest) for served in coming)
        return not self.limit_bytes or self.bytes + need <= self.limit_bytes

    # Coming

    def add(self, key: Key) -> ServedVersion:
        """Knows a version from now on; it is not loaded. Raises UnknownModel, Damaged."""
        if key not in self._versions:
            self._versions[key] = self._new(ServedVersion(self._repository.manifest(*key)), State.UNLOADED)
        return self._versions[key]

    def load(self, key: Key, predecessor: Key | None = None) -> asyncio.Task[Exception | None]:
        """Starts loading a version that was added; the running load when there is one. Its result is why it failed.

        Unused versions are unloaded where room is needed. `predecessor` goes, even while calls hold it, where nothing else helps:
        its calls end, those that come wait for the new version.
        """
        task = self._loads.get(key)
        if task is None:
            served = self._versions[key] = self._new(ServedVersion(self._versions[key].manifest), State.LOADING)
            self._queued.add(key)
            task = self._loads[key] = asyncio.get_running_loop().create_task(self._load(key, served, predecessor))
            task.add_done_callback(lambda _: self._ended(key))  # in the task itself it would not run for one cancelled before it began
        return task

    async def recall(self, key: Key, deadline: float) -> None:
        """Loads a version that a call wants, and returns when it is ready; it is not unloaded before the caller goes on.

        Raises:
            Unavailable: too many calls wait already, what is in use leaves no room, or the version could not be loaded.
            TooLarge: it can never fit.
            DeadlineMissed: it was not there by the deadline.
        """
        if self._waiting.total() >= self._settings.load_waiters:
            raise Unavailable(f"{self._settings.load_waiters} calls wait for versions to be loaded", LOAD_S)
        with self._awaited(key):
            self._recalled.add(key)
            try:
                async with asyncio.timeout_at(None if math.isinf(deadline) else deadline):
                    error = await asyncio.shield(self.load(key))
            except TimeoutError:
                raise DeadlineMissed(f"{_reference(key)} was not loaded before the deadline") from None
        if error is not None:
            raise as_fault(error, _reference(key))

    def forgive(self, key: Key) -> None:
        """Forgets that loads of the version failed."""
        self._retries.clear(key)

    def _new(self, served: ServedVersion, state: State) -> ServedVersion:
        served.state, served.returned = state, self._freed.set
        return served

    @contextmanager
    def _awaited(self, key: Key) -> Iterator[None]:
        self._waiting[key] += 1
        try:
            yield
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]

    async def _load(self, key: Key, served: ServedVersion, predecessor: Key | None) -> Exception | None:
        try:
            await self._make_room(key, served, predecessor)
            await self._loader.load(served)
            served.last_used = served.loaded = self._clock()
            self._trim()
        except Exception as error:
            self._failed(key, served, error)
            return error
        else:
            self._retries.clear(key)
            log.info("version is ready", model=_reference(key), backend=served.backend_name, resident_bytes=served.resident_bytes)
            return None

    def _ended(self, key: Key) -> None:
        del self._loads[key]
        self._queued.discard(key)
        self._recalled.discard(key)
        self._tell()

    def _tell(self) -> None:
        self._metrics.models_bytes.set(self.bytes)
        self._freed.set()
        self._settled()

    async def _make_room(self, key: Key, served: ServedVersion, predecessor: Key | None) -> None:
        try:
            async with asyncio.timeout(self._settings.load_wait_s):
                while not self._reserve(served, predecessor):
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise Unavailable(f"the versions in use leave no room for {_reference(key)}", LOAD_S) from None
        while self._leaving and self.limit_bytes and self.bytes > self.limit_bytes:  # they take no calls any more: it ends
            await asyncio.wait(self._leaving, return_when=asyncio.FIRST_COMPLETED)
        self._queued.discard(key)

    def _reserve(self, served: ServedVersion, predecessor: Key | None) -> bool:
        """Takes the room for a version, unloading others; False when there is none for now. Raises TooLarge."""
        expected, least = self._loader.expected_bytes(served.manifest), self._loader.least_bytes(served.manifest)
        pinned = sum(self._versions[key].resident_bytes for key in self.pinned if key in self._versions)
        need = claim(expected, least, self.limit_bytes, pinned)
        for yielding in dict.fromkeys((None, predecessor)):
            residents = self._in_memory(kept=predecessor if yielding is None else None, yielding=yielding)
            leaving = to_unload(residents, need, self.limit_bytes, self._clock(), self._settings.spare_s)
            if leaving is not None:
                served.resident_bytes = need
                for key in leaving:
                    self._evict(key)
                return True
        return False

    def _trim(self) -> None:
        """Unloads unused versions where one turned out to hold more than was expected."""
        with suppress(TooLarge):  # pinned ones alone are over the limit: they stay
            for key in to_unload(self._in_memory(), 0, self.limit_bytes, self._clock(), self._settings.spare_s) or ():
                self._evict(key)

    def _in_memory(self, kept: Key | None = None, yielding: Key | None = None) -> Iterator[Resident]:
        for key, served in self._versions.items():
            if not served.resident_bytes or served.state is State.DRAINING:
                continue
            if key == yielding and key not in self._loads:
                yield Resident(key, served.resident_bytes, -math.inf, -math.inf)
            else:
                held = bool(key == kept or served.lent or self._waiting[key] or key in self._loads)
                yield Resident(key, served.resident_bytes, served.last_used, served.loaded, held, key in self.pinned)

    def _failed(self, key: Key, served: ServedVersion, error: Exception) -> None:
        served.resident_bytes = 0
        self._retries.add(key, self._clock(), random.random())  # noqa: S311  replicas that fail together shall not retry together
        if isinstance(error, TooLarge | Unavailable):  # nothing is wrong with it: a call may ask again
            served.state, served.reason = State.UNLOADED, str(error)
            log.warning("no room for a version", model=served.manifest.reference, reason=served.reason)
        else:
            log.error("version could not be loaded; what served before goes on", model=served.manifest.reference, exc_info=error)

    # Going

    def _evict(self, key: Key) -> None:
        served = self._versions[key]
        log.info("version makes room for another", model=served.manifest.reference, resident_bytes=served.resident_bytes)
        self._metrics.evictions.inc()
        self._versions[key] = self._new(ServedVersion(served.manifest), State.UNLOADED)
        self._retire(key, served)

    def drop(self, key: Key) -> None:
        """Unloads a version for good once its calls are done; not one that is still being loaded."""
        served = self._versions[key]
        if key in self._loads or served.state is State.DRAINING:
            return
        self._retries.clear(key)
        if served.engine is None:
            self._forget(key, served)
        else:
            self._retire(key, served)

    def _retire(self, key: Key, served: ServedVersion) -> None:
        served.state = State.DRAINING
        task = asyncio.get_running_loop().create_task(self._drain(key, served))
        self._leaving[task] = served
        task.add_done_callback(self._left)

    async def _drain(self, key: Key, served: ServedVersion) -> None:
        await served.unload()
        await asyncio.to_thread(give_back)
        if self._versions.get(key) is served:  # and not evicted: then its place is kept
            self._forget(key, served)
        log.info("version was unloaded", model=served.manifest.reference)

    def _forget(self, key: Key, served: ServedVersion) -> None:
        del self._versions[key]
        self._loader.forget(served.manifest)
        self._gone(served)

    def _left(self, task: asyncio.Task[None]) -> None:
        served = self._leaving.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a version could not be unloaded; it may hold its memory", model=served.manifest.reference, exc_info=error)
        self._tell()

    async def settle(self) -> None:
        """Returns when every load begun has ended."""
        while self._loads:
            await asyncio.gather(*self._loads.values(), return_exceptions=True)

    async def close(self) -> None:
        """Ends loads and unloads everything."""
        for key in self._queued:  # what would wait for room that nobody gives
            self._loads[key].cancel()
        await self.settle()
        for key in self.keys():
            self.drop(key)
        await asyncio.gather(*self._leaving, return_exceptions=True)
        self._loader.close()


def as_fault(error: Exception, reference: str) -> Exception:
    """What a caller is told of a load that failed: an error of its own, since several callers get one."""
    match error:
        case TooLarge():
            return TooLarge(f"{reference} {error}")
        case Unavailable():
            return Unavailable(str(error), error.retry_after_s)
    return Unavailable(f"{reference} could not be loaded: {type(error).__name__}: {error}")


def _reference(key: Key) -> str:
    return f"{key[0]}@{key[1]}"
