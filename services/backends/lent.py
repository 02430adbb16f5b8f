"""One loaded model lent to several holders, as a backend for each; the weights go when the last of them is closed."""

import threading
from collections.abc import Mapping, Sequence

from services.backends import Array, Backend, RunError


class Shelf:
    """The loaded model, and how many hold it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._holders = 0
        self._guard = threading.Lock()

    @property
    def is_held(self) -> bool:
        """False once everyone has closed theirs, and the model with it."""
        return self._holders > 0

    def lend(self) -> "Lent":
        with self._guard:
            self._holders += 1
        return Lent(self._backend, self)

    def take_back(self) -> None:
        with self._guard:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._backend.close()


class Lent:
    """A holder's own handle: closing it harms no other."""

    def __init__(self, backend: Backend, shelf: Shelf) -> None:
        self.name = backend.name
        self.shelf = shelf
        self._backend: Backend | None = backend

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        backend = self._backend
        if backend is None:
            raise RunError("the model is closed")
        return backend.run(inputs, outputs)

    def close(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            self.shelf.take_back()
