"""One version being served: loading it, warming it up, lending it to calls, draining it."""

import asyncio
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import structlog

from services.inference.advice import Advice, read_advice
from services.inference.choosing import open_version
from services.inference.engine import Engine
from services.inference.host import Host
from services.inference.instances import Care
from services.inference.layout import layout_of
from services.inference.metrics import Metrics
from services.inference.opening import Opened, closed_on_failure
from services.inference.parallelism import Parallelism
from services.inference.settings import InferenceSettings
from services.inference.texts import TextEncoder
from services.repository.manifest import Manifest, Signature
from services.repository.store import Repository

log = structlog.get_logger("hone.served")


class State(StrEnum):
    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    FAILED = "FAILED"
    UNLOADED = "UNLOADED"  # known, and in memory again once a call waits for it


class ServedVersion:
    """A version of a model on this replica. `lend` it for the length of a call; it is not unloaded before."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.digest = manifest.digest  # once: the manifest hashes itself anew each time, and every row's key holds it
        self.namespace = f"answers/{manifest.reference}"  # of its answers in the cache
        self.state = State.LOADING
        self.reason = ""
        self.backend_name = ""
        self.parallelism: Parallelism | None = None
        self.remembers = True  # whether its answers are; its recipe may advise against it
        self.advised = ""  # the settings in force that its recipe advised, for people
        self.encoder: TextEncoder | None = None
        self.engine: Engine | None = None
        self.resident_bytes = 0  # that it holds in memory, or that are set aside while it loads
        self.loaded = self.last_used = -math.inf  # on the monotonic clock
        self.returned: Callable[[], None] = lambda: None  # called when the last call that held it has ended
        self._lent = 0
        self._returned = asyncio.Event()
        self._returned.set()

    @property
    def signature(self) -> Signature:
        return self.manifest.signature

    @property
    def lent(self) -> int:
        """Calls that hold it."""
        return self._lent

    @property
    def backend(self) -> str:
        """What runs it, for people: `onnxruntime, 2 x 1 threads, batch_rows 64 as advised`."""
        return ", ".join(str(part) for part in (self.backend_name, self.parallelism, self.advised) if part)

    @property
    def trouble(self) -> str:
        """Why it cannot be served, or is served with less than it should; empty when all is well."""
        return self.reason or (self.engine.trouble if self.engine is not None else "")

    @property
    def is_lost(self) -> bool:
        """Whether it is ready but for its instances, every one of which is being replaced."""
        return self.state is State.READY and self.engine is not None and not self.engine.live_instances

    async def load(
        self, repository: Repository, settings: InferenceSettings, metrics: Metrics, pool: ThreadPoolExecutor, host: Host
    ) -> None:
        """Verifies digests, loads and warms up, off the event loop.

        Raises:
            BackendError, ForeignProgram, repository.store.Damaged, OSError: it cannot be served; `state` is FAILED then, `reason` says why.
        """
        chosen = self._follow(read_advice(self.manifest.recipe, settings.bounds), settings)
        try:
            opened, self.encoder = await asyncio.to_thread(self._load, repository, settings, pool, host)
        except Exception as error:
            self.state, self.reason = State.FAILED, f"{type(error).__name__}: {error}"
            raise
        self.backend_name, self.parallelism = opened.backends[0].name, opened.opener.parallelism
        self.engine = Engine(
            opened.backends,
            layout_of(self.signature),
            chosen.policy,
            name=self.manifest.name,
            version=self.manifest.version,
            metrics=metrics,
            service_time=opened.service_time,
            care=Care(opened.opener, settings.hang_s, opened.opener.thread_cores, host),
        )
        self.state = State.READY

    def _follow(self, advice: Advice, settings: InferenceSettings) -> InferenceSettings:
        """The settings that this version is served with."""
        if advice.passed_over:
            log.warning("a version's advice is passed over in part", model=self.manifest.reference, passed_over=dict(advice.passed_over))
        followed = settings.followed(advice)
        self.remembers = advice.remembers
        told = [f"{name} {_told(value)}" for name, value in followed.items()]
        told += [] if advice.remembers else ["answers not remembered"]
        self.advised = f"{', '.join(told)} as advised" if told else ""
        return settings.advised(advice)

    def _load(
        self, repository: Repository, settings: InferenceSettings, pool: ThreadPoolExecutor, host: Host
    ) -> tuple[Opened, TextEncoder | None]:
        opened = open_version(repository, self.manifest, settings, host)
        with closed_on_failure(opened.backends):
            return opened, self._encoder(repository, settings, pool)

    def _encoder(self, repository: Repository, settings: InferenceSettings, pool: ThreadPoolExecutor) -> TextEncoder | None:
        if not self.signature.task.takes_text:
            return None
        folder = repository.folder(self.manifest.name, self.manifest.version)  # verified a moment ago, with the weights
        return TextEncoder(folder, self.signature, settings.max_text_chars, pool)

    @contextmanager
    def lend(self) -> Iterator[Engine]:
        """The engine, kept until the block ends."""
        if self.engine is None:
            raise RuntimeError(f"{self.manifest.reference} is not loaded")
        self._lent += 1
        self._returned.clear()
        try:
            yield self.engine
        finally:
            self._lent -= 1
            if not self._lent:
                self._returned.set()
                self.returned()

    async def unload(self) -> None:
        """Waits until no call holds it, then frees it."""
        self.state = State.DRAINING
        await self._returned.wait()
        if self.engine is not None:
            await self.engine.drain()
            await self.engine.close()
        self.engine = self.encoder = None  # whoever still knows the version does not keep its weights
        self.resident_bytes = 0


def _told(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
