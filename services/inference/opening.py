"""A version's backends, one for each instance: sharing a model in this process, or each in a process of its own."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace

from services import backends
from services.backends import Backend, Options
from services.backends.isolated import IsolatedBackend
from services.backends.lent import Lent, Shelf
from services.backends.samples import sample
from services.inference.parallelism import Parallelism
from services.inference.service_time import ServiceTime
from services.inference.settings import InferenceSettings, Isolation
from services.inference.warming import warm_up
from services.repository.manifest import Manifest
from services.repository.programs import verified_folder
from services.repository.store import Repository


class Opener:
    """Loads one version by a chosen parallelism, and anew what was lost of it: an `instances.Source`."""

    def __init__(self, repository: Repository, manifest: Manifest, settings: InferenceSettings, parallelism: Parallelism) -> None:
        self.parallelism = parallelism
        self._repository, self._manifest = repository, manifest
        self._isolated = settings.isolation is Isolation.PROCESS
        self._own_cores = parallelism.cores(settings.cores) if settings.pin else ()
        self._options = Options(settings.device, settings.torch_compile)
        self._shelf: Shelf | None = None
        self._guard = threading.Lock()

    @property
    def thread_cores(self) -> tuple[tuple[int, ...], ...]:
        """To which cores each instance's thread is bound; one that waits for its process needs none."""
        return () if self._isolated else self._own_cores

    def open(self) -> "Opened":
        """A warm backend for each instance, and what warming up taught.

        Raises:
            BackendError, ForeignProgram, Damaged, OSError: it cannot be served.
        """
        opened = self._children() if self._isolated else self._shared()
        with closed_on_failure(opened):
            service_time = warm_up(opened[0], self._manifest.signature)
            for backend in opened[1:] if self._isolated else ():
                warm_up(backend, self._manifest.signature)
        return Opened(self, opened, service_time)

    def replace(self, number: int, broken: Backend) -> Backend:
        """A warm backend for an instance whose own was given up. Raises as `open`."""
        fresh = self._child(number) if self._isolated else self._another(broken)
        with closed_on_failure([fresh]):
            warm_up(fresh, self._manifest.signature)
        return fresh

    def probe(self, backend: Backend) -> None:
        """Raises RunError where it does not answer the simplest batch."""
        signature = self._manifest.signature
        backend.run(sample(signature, 1, 8), [spec.name for spec in signature.outputs])

    def _shared(self) -> list[Lent]:
        self._shelf = Shelf(self._load())
        return [self._shelf.lend() for _ in range(self.parallelism.instances)]

    def _another(self, broken: Backend) -> Lent:
        """Instances that are given up one after the other share one new model."""
        with self._guard:
            if self._shelf is None or not self._shelf.is_held or (isinstance(broken, Lent) and broken.shelf is self._shelf):
                self._shelf = Shelf(self._load())
            return self._shelf.lend()

    def _load(self) -> Backend:
        folder = verified_folder(self._repository, self._manifest)
        options = replace(self._options, cores=tuple(core for own in self._own_cores for core in own))
        return backends.load(folder, self._manifest.signature, self.parallelism.threads, self.parallelism.instances, options)

    def _children(self) -> list[IsolatedBackend]:
        """Started together: each imports its engine first, which takes longer than most loads."""
        started: list[IsolatedBackend] = []
        with closed_on_failure(started), ThreadPoolExecutor(self.parallelism.instances) as pool:
            starting = [pool.submit(self._child, number) for number in range(self.parallelism.instances)]
            started += [each.result() for each in as_completed(starting) if each.exception() is None]
            return [each.result() for each in starting]

    def _child(self, number: int) -> IsolatedBackend:
        folder = verified_folder(self._repository, self._manifest)
        options = replace(self._options, cores=self._own_cores[number] if self._own_cores else ())
        return IsolatedBackend(folder, self._manifest.signature, self.parallelism.threads, options)


@dataclass(frozen=True, slots=True)
class Opened:
    """Warm backends, one for each instance, and what warming them up taught."""

    opener: Opener
    backends: Sequence[Backend]
    service_time: ServiceTime

    def close(self) -> None:
        """Frees what was loaded."""
        for backend in self.backends:
            backend.close()


@contextmanager
def closed_on_failure(opened: Sequence[Backend]) -> Iterator[None]:
    """Nothing that was loaded for a block that fails stays in memory."""
    try:
        yield
    except BaseException:
        for backend in opened:
            backend.close()
        raise
