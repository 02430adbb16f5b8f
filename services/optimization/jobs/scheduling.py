"""Which waiting job starts now and on which cores: a pure decision over the queue, what runs and what there is."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta


class OverBudget(ValueError):
    """A job asks for more than this server gives. The text begins with the field's path: `budget.cores: …`."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What all running jobs together may use; `cores` are the system's numbers, those given out last first."""

    cores: tuple[int, ...]
    memory_bytes: int
    max_running: int

    def holds(self, need: "Need") -> bool:
        """Whether a job could run here at all, if nothing else ran."""
        return need.cores <= len(self.cores) and need.memory_bytes <= self.memory_bytes


@dataclass(frozen=True, slots=True)
class Need:
    """What a job asks for."""

    cores: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a job takes that does not say; 0 is all cores, and as much of the memory as the job's part of the cores."""

    cores: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """What a running job was given."""

    cores: tuple[int, ...]
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Waiting:
    id: str
    created: datetime
    need: Need


@dataclass(frozen=True, slots=True)
class Start:
    """The decision to start a job."""

    id: str
    share: Share


def check_budget(cores: int, memory_bytes: int, capacity: Capacity) -> None:
    """Whether a job that asks for so much, 0 for the default, could ever run here. Raises OverBudget."""
    if cores > len(capacity.cores):
        raise OverBudget(f"budget.cores: {cores} are more than the {len(capacity.cores)} that this server gives jobs")
    if memory_bytes > capacity.memory_bytes:
        raise OverBudget(f"budget.memory_bytes: {memory_bytes} are more than the {capacity.memory_bytes} that this server gives jobs")


def need_of(cores: int, memory_bytes: int, defaults: Defaults, capacity: Capacity) -> Need:
    """What a job asks for, with the defaults in place of 0. The defaults always fit."""
    there = len(capacity.cores)
    wanted = cores or min(defaults.cores or there, there)
    part = min(capacity.memory_bytes, capacity.memory_bytes * wanted // there)
    return Need(wanted, memory_bytes or min(defaults.memory_bytes or part, capacity.memory_bytes))


def next_start(
    queue: Iterable[Waiting], running: Collection[Share], capacity: Capacity, now: datetime, patience: timedelta
) -> Start | None:
    """The job to start now, None when it is better to wait. Ask again after each start and each end.

    Oldest first. One that does not fit yet is overtaken by younger ones that do, so that cores do not idle, but only until
    it has waited `patience`: then whatever ends leaves its room to that one, or small jobs would keep a big one out for
    ever. A job that could never run here is passed over; another server may take it.
    """
    if len(running) >= capacity.max_running:
        return None
    for waiting in sorted(queue, key=lambda waiting: (waiting.created, waiting.id)):
        if not capacity.holds(waiting.need):
            continue
        share = _share(waiting.need, running, capacity)
        if share is not None:
            return Start(waiting.id, share)
        if now - waiting.created >= patience:
            return None
    return None


def _share(need: Need, running: Collection[Share], capacity: Capacity) -> Share | None:
    """Cores and bytes that nobody has; None where there are too few."""
    taken = {core for share in running for core in share.cores}
    free = [core for core in capacity.cores if core not in taken]
    free_bytes = capacity.memory_bytes - sum(share.memory_bytes for share in running)
    if need.cores > len(free) or need.memory_bytes > free_bytes:
        return None
    return Share(tuple(free[-need.cores :]), need.memory_bytes)
