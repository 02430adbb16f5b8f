"""What the versions of one process share besides their metrics."""

import asyncio
from threading import Lock, Thread

from services.inference.parallelism import Parallelism

MOST_HUNG = 4  # each holds its stack, its batch and a copy of the model for good


class Host:
    """Used on the event loop's thread, but for what is measured."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()  # a version lost its last instance, or has one again
        self.given_up = asyncio.Event()  # so much hangs that only a new process helps
        self.measuring = Lock()  # held in the threads that load versions
        self.measured: dict[str, Parallelism] = {}  # by artifact digest: a version that comes back is not measured again
        self._hung: list[Thread] = []

    @property
    def hung_threads(self) -> int:
        """Threads given up that have not come back since."""
        self._hung = [thread for thread in self._hung if thread.is_alive()]
        return len(self._hung)

    def abandon(self, thread: Thread) -> None:
        """Counts a thread that hangs: it cannot be killed, so that beyond a few the process must end."""
        self._hung.append(thread)
        if self.hung_threads >= MOST_HUNG:
            self.given_up.set()
