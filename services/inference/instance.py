"""One instance of a version: a thread that runs batches on its backend, in the order given."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Protocol

from services.backends import Backend, BackendDied, BackendError, RunError
from services.inference.batching import Batch
from services.inference.layout import Layout, Values
from services.inference.threads import Worker
from services.inference.tickets import QueuedRow

PREPARE_SHARE = 0.25  # of a batch's predicted time before its end, the next one is prepared
PREPARE_LEAST_S = 0.002
LATE_FACTOR, LATE_S = 3.0, 1.0  # of the predicted time, and beyond it: from then on nothing is prepared for the instance
HANG_FACTOR = 20.0  # of the predicted time, beyond the setting: rows of a poisoned batch run once more, alone
MOST_FAILURES = 3  # batches in a row without one good row, before the backend must prove itself


class Loss(StrEnum):
    """Why an instance was given up."""

    HUNG = "hung"
    DIED = "died"  # its process or device is gone
    FAILING = "failing"  # it fails whatever it is given


class Crew(Protocol):
    """Who an instance belongs to."""

    def watch(self) -> None:
        """A batch was handed over; from now on the instance may hang."""

    def told(self, instance: "Instance", ran: "Ran") -> None:
        """A batch has ended. Called in the instance's thread."""

    def is_sound(self, backend: Backend) -> bool:
        """Whether a backend answers a batch that is known to be right. Called in the instance's thread."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A batch that has run: its rows' answers, those dropped before left out, and whether the backend is lost."""

    answers: Mapping[QueuedRow, Values | Exception]
    begun: float
    ended: float
    predicted_s: float
    loss: Loss | None = None

    @property
    def compute_ns(self) -> int:
        return round((self.ended - self.begun) * 1e9)


@dataclass(frozen=True, slots=True, eq=False)
class Handed:
    """A batch that an instance was given."""

    batch: Batch[QueuedRow]
    predicted_s: float


class Instance:
    """Runs batches in its thread, in the order given: one runs, one is prepared. All but `_execute` is the loop's thread's."""

    def __init__(self, number: int, backend: Backend, worker: Worker, crew: Crew, layout: Layout, clock: Callable[[], float]) -> None:
        self.number = number
        self.backend = backend
        self.worker = worker
        self.free_at = 0.0  # predicted end of what it was handed
        self.prepare_at = 0.0  # from then on a batch that is not full is worth preparing
        self.handed: deque[Handed] = deque()
        self.suspected: Handed | None = None
        self.lost = False
        self._since = 0.0
        self._crew = crew
        self._layout = layout
        self._clock = clock
        self._failures = 0  # of batches in a row; the thread's own

    @property
    def pending(self) -> int:
        """Batches handed over and not ended."""
        return len(self.handed)

    def hand(self, batch: Batch[QueuedRow], predicted_s: float, now: float) -> None:
        """Runs a batch after those handed over before."""
        begin = max(now, self.free_at) if self.handed else now
        self.free_at = begin + predicted_s
        self.prepare_at = self.free_at - max(PREPARE_LEAST_S, PREPARE_SHARE * predicted_s)
        if not self.handed:
            self._since = now
        handed = Handed(batch, predicted_s)
        self.handed.append(handed)
        self.worker.submit(partial(self._execute, handed))
        self._crew.watch()

    def is_late(self, now: float) -> bool:
        """Whether it takes so much longer than predicted that what waits is better off elsewhere."""
        return bool(self.handed) and now - self.free_at > LATE_S + LATE_FACTOR * self.handed[0].predicted_s

    def hung_at(self, hang_s: float) -> float:
        """When what runs now must be taken for hung."""
        return self._since + hang_s + HANG_FACTOR * self.handed[0].predicted_s if self.handed else math.inf

    def end(self, now: float) -> None:
        """The batch that ran has ended; the next one is running."""
        self.handed.popleft()
        self._since = now

    def _execute(self, handed: Handed) -> None:
        if self.lost:
            return
        begun = self._clock()
        # A batch prepared ahead may have lost callers since; what nobody waits for is not run.
        live = [row for row in handed.batch.rows if row.waiters and row.deadline > begun]
        found = answer(self.backend, self._layout, live) if live else []
        ended = self._clock()
        loss = self._judge(found)
        self._crew.told(self, Ran(dict(zip(live, found, strict=True)), begun, ended, handed.predicted_s, loss))

    def _judge(self, found: Sequence[Values | Exception]) -> Loss | None:
        """A batch that failed whole may be its rows' fault: only a backend that fails a right one too is lost."""
        if any(isinstance(row, BackendDied) for row in found):
            return Loss.DIED
        if found and all(isinstance(row, Exception) for row in found):
            self._failures += 1
        elif found:
            self._failures = 0
        if self._failures < MOST_FAILURES:
            return None
        self._failures = 0
        return None if self._crew.is_sound(self.backend) else Loss.FAILING


def answer(backend: Backend, layout: Layout, rows: Sequence[QueuedRow]) -> list[Values | Exception]:
    """Each row's answer, or why there is none."""
    try:
        outputs = backend.run(layout.merge([row.values for row in rows]), rows[0].outputs)
        return list(layout.split(outputs, [row.values for row in rows]))
    except BackendDied as error:
        return [error] * len(rows)
    except BackendError as error:
        if len(rows) == 1:
            return [error]
        # One stranger's row may have failed them all: alone, each fails or succeeds by itself.
        return [found for row in rows for found in answer(backend, layout, [row])]
    except Exception as error:  # whatever a backend raises fails its batch, not the loop
        return [RunError(f"{type(error).__name__}: {error}")] * len(rows)
