"""Callers at work in threads while a test breaks something."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc


class Load:
    """What callers were answered: `answered` by replica, `failed` by status code."""

    def __init__(self, call: Callable[[], str]) -> None:
        self._call = call
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self.answered: Counter[str] = Counter()
        self.failed: Counter[grpc.StatusCode] = Counter()

    def await_answers(self, more: int, within_s: float = 30) -> None:
        """Returns when `more` further calls were answered."""
        with self._changed:
            goal = self.answered.total() + more
            assert self._changed.wait_for(lambda: self.answered.total() >= goal, within_s), f"{self.answered} {self.failed}"

    def work(self) -> None:
        while not self._stop.is_set():
            try:
                counter, key = self.answered, self._call()
            except grpc.RpcError as error:
                counter, key = self.failed, error.code()  # type: ignore[assignment]
            with self._changed:
                counter[key] += 1
                self._changed.notify_all()

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def under_load(call: Callable[[], str], callers: int = 4) -> Iterator[Load]:
    """Repeats `call`, which returns the replica's name, in `callers` threads until the end of the block."""
    load = Load(call)
    threads = [threading.Thread(target=load.work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stop()
        for thread in threads:
            thread.join()
