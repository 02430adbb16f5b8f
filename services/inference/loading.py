"""Bringing versions into memory, a few at a time, and learning what they take there."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from services.inference.host import Host
from services.inference.metrics import Metrics
from services.inference.residency import Footprints
from services.inference.served import ServedVersion
from services.inference.settings import InferenceSettings
from services.repository.manifest import Manifest
from services.repository.store import Repository


class Loader:
    """`held` is how many bytes the process holds now, and tells by how much a load made it grow."""

    def __init__(self, repository: Repository, settings: InferenceSettings, metrics: Metrics, held: Callable[[], int]) -> None:
        self._repository = repository
        self._settings = settings
        self._metrics = metrics
        self._held = held
        self._slots = asyncio.Semaphore(settings.parallel_loads)
        self._running = self._begun = 0
        self._footprints = Footprints()
        self.host = Host()
        self._pool = ThreadPoolExecutor(1, "tokenize")

    def expected_bytes(self, manifest: Manifest) -> int:
        """What the version will hold, as far as is known."""
        return self._footprints.expected((manifest.name, manifest.version), manifest.signature.format, manifest.size_bytes)

    def least_bytes(self, manifest: Manifest) -> int:
        """What it will hold for certain."""
        return self._footprints.least((manifest.name, manifest.version), manifest.size_bytes)

    async def load(self, served: ServedVersion) -> None:
        """Loads a version and sets its `resident_bytes`. Raises what the load raises."""
        async with self._slots:
            self._running += 1
            self._begun += 1
            begun, alone = self._begun, self._running == 1
            try:
                before = await asyncio.to_thread(self._held)
                with self._metrics.loading():
                    await served.load(self._repository, self._settings, self._metrics, self._pool, self.host)
                grown = await asyncio.to_thread(self._held) - before
            finally:
                self._running -= 1
        if alone and begun == self._begun:  # with others at the same time, whose growth it was cannot be told
            self._learn(served, grown)

    def _learn(self, served: ServedVersion, grown_bytes: int) -> None:
        manifest = served.manifest
        key = (manifest.name, manifest.version)
        format_, files_bytes = manifest.signature.format, manifest.size_bytes
        served.resident_bytes = self._footprints.learn(key, format_, files_bytes, grown_bytes, served.resident_bytes)

    def forget(self, manifest: Manifest) -> None:
        """Of a version that is gone for good."""
        self._footprints.forget((manifest.name, manifest.version))

    def close(self) -> None:
        """Ends the tokenizers' thread."""
        self._pool.shutdown()
