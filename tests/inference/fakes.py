"""A backend that a test holds still, and a clock that it moves."""

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from services.backends import Array
from services.inference.service_time import ServiceTime

OUTPUT = "checksum"
WAIT_S = 60.0  # only a broken test waits so long


def checksum(ids: Sequence[int]) -> int:
    """What the fake answers for a row: another number for another row, whatever its padding."""
    return sum((place + 1) * int(token) for place, token in enumerate(ids))


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Linear:
    """A forecast that is exact, if `sure_share` is 1: a tenth of a millisecond for each padded token."""

    def __init__(self, sure_share: float = 1.0) -> None:
        self.sure_share = sure_share

    def predict(self, rows: int, longest: int) -> float:
        return 1e-3 + 1e-4 * rows * longest


class Unhurried(ServiceTime):
    """Predicts that a batch takes for ever, so that the engine prepares no batch ahead that could still grow."""

    def predict(self, rows: int, longest: int) -> float:
        return 1000.0

    def learn(self, rows: int, longest: int, seconds: float) -> None:
        pass


class HeldBackend:
    """Answers the checksum of each row once `gate` is open. `fault` may raise for a batch's rows."""

    name = "held"

    def __init__(self, fault: Callable[[list[list[int]]], None] = lambda rows: None) -> None:
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.batches: list[list[list[int]]] = []
        self.closed = False
        self._fault = fault

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        rows = [ids[mask == 1].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        self.batches.append(rows)
        self.begun.release()
        assert self.gate.wait(WAIT_S)
        self._fault(rows)
        return {name: np.array([[checksum(row)] for row in rows], np.int64) for name in outputs}

    @property
    def ran(self) -> list[list[int]]:
        """Every row that has run, in order."""
        return [row for batch in self.batches for row in batch]

    def close(self) -> None:
        self.closed = True
