"""What a call hands to the engine and waits for."""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from services.chassis import tracing
from services.chassis.faults import DeadlineMissed
from services.inference.admission import Prospect
from services.inference.lanes import Row
from services.inference.layout import Values


@dataclass(frozen=True, slots=True)
class Item:
    """One row to compute. Rows with equal `flight` are the same question and are computed once."""

    values: Values
    outputs: tuple[str, ...]
    flight: bytes | None = None


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """A row's outputs and where its time went."""

    outputs: Values
    queue_ns: int
    compute_ns: int
    batch_rows: int


class QueuedRow(Row):
    """A row with its values and the calls that wait for it; `answer` is theirs to take once it has run."""

    __slots__ = ("answer", "flight", "outputs", "values", "waiters")

    def __init__(self, item: Item, key: Hashable, length: int, priority: int, deadline: float) -> None:
        super().__init__(key, length, priority, deadline)
        self.values = item.values
        self.outputs = item.outputs
        self.flight = item.flight
        self.waiters: list[tuple[Ticket, int]] = []
        self.answer: RowAnswer | None = None


class Ticket:
    """One call's rows, with what it had to expect when it was `asked`.

    Abandoning it takes rows that nobody else waits for out of the queue and harms no other call.
    """

    def __init__(self, rows: int, abandon: Callable[["Ticket"], None], expected: Prospect | None, asked: float, deadline: float) -> None:
        self._answers: list[RowAnswer | None] = [None] * rows
        self._left = rows
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._abandon = abandon
        self.rows: list[QueuedRow] = []
        self.expected = expected
        self.asked, self.deadline = asked, deadline
        self.late = False  # a row of it was given up for its deadline
        self.trace = tracing.current()

    async def answers(self) -> list[RowAnswer]:
        """Every row's answer, in order. Raises what the first failing row raised."""
        try:
            await self._future
        finally:
            self._abandon(self)
        return [answer for answer in self._answers if answer is not None]

    @property
    def complete(self) -> bool:
        return self._left == 0

    def give(self, index: int, answer: RowAnswer) -> None:
        self._answers[index] = answer
        self._left -= 1
        if self._left == 0 and not self._future.done():
            self._future.set_result(None)

    def fail(self, error: Exception) -> None:
        self.late = self.late or isinstance(error, DeadlineMissed)
        if not self._future.done():  # set an exception, never cancel: a cancelled future would leave the caller without an answer
            self._future.set_exception(error)
