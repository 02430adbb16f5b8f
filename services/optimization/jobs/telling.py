"""How often a worker tells: every line, the newest points of every curve, and no more of them than somebody can watch."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import TextIO

from services.optimization.jobs.job import NO_METRICS, Told

EVENTS_PER_SECOND = 4.0
BURST_LINES = 20.0
_LONGEST_MESSAGE = 1 << 16


class Thinner:
    """Decides what is told when. Pure: `now` is in seconds of any steady clock.

    Lines are never dropped; those of a flood, past BURST_LINES, are told together, and the end of what is too long is cut. A
    training tells points of its curves with every step: of those with the same names the newest is told EVENTS_PER_SECOND
    times, which thins them evenly in time and loses neither the last nor one of another curve (a validation loss between a
    thousand training losses). Whole curves are in the techniques' notes, and so in the report.
    """

    def __init__(self) -> None:
        self._pending: dict[object, Told] = {}
        self._lines = 0
        self._tokens = BURST_LINES
        self._seen = 0.0
        self._next = 0.0

    def add(self, told: Told, now: float) -> list[Told]:
        """What to tell now, `told` among it or later."""
        key = object() if told.message else (told.stage, frozenset(told.metrics))
        self._pending.pop(key, None)  # the newest is told in its own place, after what came before it
        self._pending[key] = told
        self._lines += bool(told.message)
        return self.poll(now)

    def poll(self, now: float) -> list[Told]:
        """What to tell now."""
        self._tokens = min(BURST_LINES, self._tokens + (now - self._seen) * EVENTS_PER_SECOND)
        self._seen = now
        if not self._pending or not (0 < self._lines <= self._tokens or now >= self._next):
            return []
        return self._take(now)

    def wait(self, now: float) -> float | None:
        """Seconds until `poll` tells something, None where nothing waits to be told."""
        return max(0.0, self._next - now) if self._pending else None

    def rest(self) -> list[Told]:
        """Everything, at the end."""
        return self._take(self._seen)

    def _take(self, now: float) -> list[Told]:
        waiting = list(self._pending.values())
        told = waiting if self._lines <= self._tokens else list(_joined(waiting))
        self._tokens = max(0.0, self._tokens - self._lines)
        self._pending, self._lines = {}, 0
        self._next = now + 1 / EVENTS_PER_SECOND
        return told


def _joined(waiting: list[Told]) -> Iterator[Told]:
    """Lines of one stage in a row as one event; points stay as they are."""
    for (stage, is_line), group in groupby(waiting, lambda told: (told.stage, bool(told.message) and not told.metrics)):
        several = list(group)
        if is_line:
            yield Told(stage, several[-1].fraction, "\n".join(told.message for told in several)[:_LONGEST_MESSAGE])
        else:
            yield from several


class Teller:
    """Writes JSON lines, thinned out by a thread of its own: a long native call must not hold back what was told before it."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._thinner = Thinner()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="teller", daemon=True)
        self._thread.start()

    def __call__(self, stage: str, fraction: float, message: str, *, step: int = 0, metrics: Mapping[str, float] = NO_METRICS) -> None:
        told = Told(stage, fraction, message[:_LONGEST_MESSAGE], step, {name: float(value) for name, value in metrics.items()})
        with self._changed:
            self._write(self._thinner.add(told, self._clock()))
            self._changed.notify()

    def close(self) -> None:
        """Tells the rest."""
        with self._changed:
            self._closed = True
            self._write(self._thinner.rest())
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                self._changed.wait(self._thinner.wait(self._clock()))
                self._write(self._thinner.poll(self._clock()))

    def _write(self, several: list[Told]) -> None:
        for told in several:
            print(_line(told), file=self._stream)
        if several:
            self._stream.flush()


def _line(told: Told) -> str:
    return json.dumps({name: getattr(told, name) for name in Told.__slots__} | {"metrics": dict(told.metrics)})


def read_line(line: bytes) -> Told:
    """What a worker told."""
    return Told(**json.loads(line))
