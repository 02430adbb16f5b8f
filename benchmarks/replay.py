"""Ways to search, replayed over a table of what everything came to: no model is run, and the clock is the table's seconds."""

import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from services.optimization.advisor.guess import Prior
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.search import Search
from services.optimization.advisor.wanted import Wanted

NO_GAIN = 1.0  # the original is always there


@dataclass(frozen=True)
class Cell:
    """One rung and what it came to. `trial` is accepted as far as its loss is not looked at: that depends on the goal."""

    rung: Rung
    trial: Trial
    step_seconds: tuple[float, ...]  # as long as what was made of its steps
    own_seconds: float  # of measuring it, which no other rung shares
    shared: Mapping[str, float] = field(default_factory=dict)  # seconds of what others need too and is no step, by its name

    @property
    def makings(self) -> dict[str, float]:
        """Seconds by what is made: rungs that begin with the same steps have those in common."""
        steps = [json.dumps(step.model_dump(mode="json"), sort_keys=True) for step in self.rung.steps]
        return {**self.shared, **{" | ".join(steps[: index + 1]): seconds for index, seconds in enumerate(self.step_seconds)}}

    def judged(self, max_loss: float) -> Trial:
        """As the gates judge: the worse bound of the loss is within what is allowed."""
        loss = self.trial.loss
        return replace(self.trial, accepted=self.trial.accepted and loss is not None and loss.high <= max_loss)


class Purse:
    """Seconds spent, on everything once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._made: set[str] = set()

    def price(self, cell: Cell) -> float:
        return cell.own_seconds + sum(seconds for name, seconds in cell.makings.items() if name not in self._made)

    def pay(self, cell: Cell) -> float:
        """The price."""
        price = self.price(cell)
        self.seconds += price
        self._made.update(cell.makings)
        return price


@dataclass(frozen=True)
class Move:
    """One trial of a replay, done at `at_seconds`; `expected_speedup` as it was just before, 0 where nothing was expected."""

    trial: Trial
    at_seconds: float
    seconds: float
    planned_seconds: float
    expected_speedup: float = 0.0


@dataclass(frozen=True)
class Replay:
    """What one way to search did, in its order, and when and why it ended."""

    moves: tuple[Move, ...]
    seconds: float
    reason: str

    def best_by(self, seconds: float) -> float:
        """The highest accepted speed-up of what was done by then."""
        return max((speedup_of(move.trial) for move in self.moves if move.at_seconds <= seconds and move.trial.accepted), default=NO_GAIN)

    def met_at(self, wanted: Wanted) -> float:
        """Seconds until the first that meets the target; infinite where none does."""
        return next((move.at_seconds for move in self.moves if wanted.is_met_by(move.trial)), inf)


def speedup_of(trial: Trial) -> float:
    """None of what could not be made."""
    return trial.speedup.estimate if trial.speedup is not None else NO_GAIN


class Table:
    """Everything that may be tried, measured once. The grid is the rungs that can be chosen: shapes are no candidates.

    `counted` examples, right or wrong, told what is lost; 0 where that is not known.
    """

    def __init__(self, cells: Iterable[Cell], counted: int = 0) -> None:
        self._counted = counted
        self.cells = {cell.rung.name: cell for cell in cells}
        self.grid = [cell for cell in self.cells.values() if not cell.rung.is_shape]

    @property
    def grid_seconds(self) -> float:
        purse = Purse()
        return sum(purse.pay(cell) for cell in self.grid)

    def best(self, max_loss: float) -> float:
        trials = [cell.judged(max_loss) for cell in self.grid]
        return max((speedup_of(trial) for trial in trials if trial.accepted), default=NO_GAIN)

    def has(self, wanted: Wanted) -> bool:
        return any(wanted.is_met_by(cell.judged(wanted.max_loss)) for cell in self.grid)

    def searched(self, wanted: Wanted, priors: Mapping[str, Prior], budget_seconds: float = inf) -> Replay:
        """By `Search`, which is told what it would be told in a job: each trial when it is done, and the time that is left.

        A trial that does not end within the budget takes the rest of it and tells nothing.
        """
        search = Search([cell.rung for cell in self.cells.values()], wanted, priors, counted=self._counted)
        purse, moves = Purse(), list[Move]()
        while isinstance(found := search.next(budget_seconds - purse.seconds), Rung):
            outlook = next(each for each in search.outlooks() if found.name in (each.rung.name, each.rung.shape))
            cell = self.cells[found.name]
            if purse.seconds + purse.price(cell) > budget_seconds:
                return Replay(tuple(moves), budget_seconds, f"the time was over before {found.name} was done")
            planned_seconds, seconds = search.seconds_of(found), purse.pay(cell)
            trial = replace(cell.judged(wanted.max_loss), seconds=seconds)
            search.learn(trial)
            moves.append(Move(trial, purse.seconds, seconds, planned_seconds, outlook.expected.speedup.median))
        return Replay(tuple(moves), purse.seconds, found.reason)

    def in_order(self, order: Sequence[Cell], wanted: Wanted, budget_seconds: float = inf) -> Replay:
        """In a given order, until the target is met. Better off than any real search: what the budget is too short for is not begun."""
        purse, moves = Purse(), list[Move]()
        for cell in order:
            if purse.seconds + purse.price(cell) > budget_seconds:
                continue
            seconds = purse.pay(cell)
            moves.append(Move(cell.judged(wanted.max_loss), purse.seconds, seconds, cell.rung.seconds))
            if wanted.has_target and wanted.is_met_by(moves[-1].trial):
                return Replay(tuple(moves), purse.seconds, "the target is met")
        return Replay(tuple(moves), purse.seconds, "everything was tried")

    def at_random(self, wanted: Wanted, seeds: int, budget_seconds: float = inf) -> Iterator[Replay]:
        """`in_order`, once for each seed."""
        for seed in range(seeds):
            yield self.in_order(random.Random(seed).sample(self.grid, len(self.grid)), wanted, budget_seconds)

    def cheapest_first(self, wanted: Wanted, budget_seconds: float = inf) -> Replay:
        """By the seconds that were planned for each."""
        return self.in_order(sorted(self.grid, key=lambda cell: cell.rung.seconds), wanted, budget_seconds)


@dataclass(frozen=True)
class Band:
    """The median of many and the bounds that 90 % of them lie within; infinite values count as such."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float], share: float = 0.9) -> "Band":
        found = sorted(values)
        return cls(_quantile(found, 0.5), _quantile(found, (1 - share) / 2), _quantile(found, (1 + share) / 2))


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest that this share of them does not exceed: one that was seen, since nothing lies between a number and infinity."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
