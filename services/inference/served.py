"""One version being served: loading it, warming it up, lending it to calls, draining it."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from services import backends
from services.backends import Backend
from services.backends.datatypes import DATATYPES
from services.inference.engine import Engine
from services.inference.layout import Layout, Values, layout_of
from services.inference.metrics import Metrics
from services.inference.service_time import ServiceTime
from services.inference.settings import InferenceSettings
from services.inference.texts import TextEncoder
from services.repository.manifest import Manifest, Signature, Task
from services.repository.programs import verified_folder
from services.repository.store import Repository

# (rows, tokens) run before a version is ready: pages the weights in and gives the service time its first samples.
WARM_UP = ((1, 8), (1, 32), (8, 16), (8, 32), (16, 32), (1, 16))
IMAGE_SIDE = 64  # of a warm-up image where the net takes any size: in a smaller one, deep nets have no pixel left


class State(StrEnum):
    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class _Loaded:
    backend: Backend
    encoder: TextEncoder | None
    layout: Layout
    service_time: ServiceTime


class ServedVersion:
    """A version of a model on this replica. `lend` it for the length of a call; it is not unloaded before."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.state = State.LOADING
        self.reason = ""
        self.backend_name = ""
        self.encoder: TextEncoder | None = None
        self.engine: Engine | None = None
        self._lent = 0
        self._returned = asyncio.Event()
        self._returned.set()

    @property
    def signature(self) -> Signature:
        return self.manifest.signature

    @property
    def namespace(self) -> str:
        """Of its answers in the cache."""
        return f"answers/{self.manifest.reference}"

    async def load(self, repository: Repository, settings: InferenceSettings, metrics: Metrics, pool: ThreadPoolExecutor) -> None:
        """Verifies digests, loads and warms up, off the event loop.

        Raises:
            BackendError, ForeignProgram, repository.store.Damaged, OSError: it cannot be served; `state` is FAILED then, `reason` says why.
        """
        try:
            loaded = await asyncio.to_thread(self._load, repository, settings, pool)
        except Exception as error:
            self.state, self.reason = State.FAILED, f"{type(error).__name__}: {error}"
            raise
        self.encoder, self.backend_name = loaded.encoder, loaded.backend.name
        self.engine = Engine(
            loaded.backend,
            loaded.layout,
            settings.policy,
            instances=settings.parallelism[0],
            name=self.manifest.name,
            version=self.manifest.version,
            metrics=metrics,
            service_time=loaded.service_time,
        )
        self.state = State.READY

    def _load(self, repository: Repository, settings: InferenceSettings, pool: ThreadPoolExecutor) -> _Loaded:
        instances, threads = settings.parallelism
        folder = verified_folder(repository, self.manifest)
        backend = backends.load(folder, self.signature, threads, parallel_runs=instances)
        encoder = TextEncoder(folder, self.signature, settings.max_text_chars, pool) if self.signature.task.takes_text else None
        return _Loaded(backend, encoder, layout_of(self.signature), warm_up(backend, self.signature))

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

    async def unload(self) -> None:
        """Waits until no call holds it, then frees it."""
        self.state = State.DRAINING
        await self._returned.wait()
        if self.engine is not None:
            await self.engine.drain()
            await self.engine.close()


def warm_up(backend: Backend, signature: Signature) -> ServiceTime:
    """Runs typical batches, each twice, and learns from the second. Raises RunError."""
    service_time = ServiceTime()
    outputs = [spec.name for spec in signature.outputs]
    for rows, tokens in WARM_UP:
        tokens = min(tokens, signature.max_tokens or tokens)
        batch = _sample(signature, rows, tokens)
        backend.run(batch, outputs)
        begun = time.monotonic()
        backend.run(batch, outputs)
        service_time.learn(rows, tokens if signature.task.takes_text else 1, time.monotonic() - begun)
    return service_time


def _sample(signature: Signature, rows: int, tokens: int) -> Values:
    """Ones where the size varies by length, so that masks select and ids exist."""
    free = {Task.TENSOR: 1, Task.IMAGE_CLASSIFICATION: IMAGE_SIDE}
    varying = free.get(signature.task, tokens)
    return {
        spec.name: np.ones((rows, *(size if size > 0 else varying for size in spec.shape[1:])), np.dtype(DATATYPES[spec.datatype]))
        for spec in signature.inputs
    }
