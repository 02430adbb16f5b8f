"""A thread that does one job after another, and that can be left behind."""

import os
from collections.abc import Callable, Collection
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """A daemon thread: one that hangs must not keep the process from ending, as a ThreadPoolExecutor's would."""

    def __init__(self, name: str, cores: Collection[int] = ()) -> None:
        """`cores`: those that the thread may run on, and those that it starts; none: any. Raises OSError where they are not ours."""
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.thread = Thread(target=self._work, name=name, daemon=True)
        self.thread.start()
        if cores:
            os.sched_setaffinity(self.thread.native_id or 0, cores)

    def submit(self, job: Callable[[], None]) -> None:
        """`job` raises nothing."""
        self._jobs.put(job)

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """What it answers or raises."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                found = function()
            except BaseException as error:  # whoever waits for it gets it
                future.set_exception(error)
            else:
                future.set_result(found)

        self._jobs.put(job)
        return future

    def stop(self) -> None:
        """Ends the thread after the jobs that it has been given."""
        self._jobs.put(None)

    def join(self, seconds: float) -> bool:
        """Whether it has ended within that time."""
        self.thread.join(max(0.0, seconds))
        return not self.thread.is_alive()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # or the last batch would live until the next one
