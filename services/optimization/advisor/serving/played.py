"""What a replay saw: turns of one version's, each a stretch of time in which it alone was asked."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Turn:
    """Requests of so many seconds. `unanswered` were refused or failed; the service's processes used `cpu_s`, asking `asking_cpu_s`."""

    seconds: float
    rows: int  # answered
    latencies_s: tuple[float, ...]  # of answered requests
    unanswered: int = 0
    cpu_s: float = 0.0
    asking_cpu_s: float = 0.0

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds

    def latency_s(self, share: float) -> float:
        """That so large a share of requests takes at most; infinite where more than the rest were not answered."""
        return quantile(self.latencies_s, self.unanswered, share)


@dataclass(frozen=True)
class Played:
    """One version's turns, at least one."""

    turns: tuple[Turn, ...] = field()

    @property
    def rows_per_second(self) -> float:
        """Median of the turns."""
        return statistics.median(turn.rows_per_second for turn in self.turns)

    @property
    def requests(self) -> int:
        """Answered."""
        return sum(len(turn.latencies_s) for turn in self.turns)

    @property
    def unanswered(self) -> int:
        return sum(turn.unanswered for turn in self.turns)

    @property
    def rows(self) -> int:
        """Answered."""
        return sum(turn.rows for turn in self.turns)

    @property
    def cpu_s_per_row(self) -> float:
        return sum(turn.cpu_s for turn in self.turns) / max(1, self.rows)

    @property
    def asking_cpu_s_per_row(self) -> float:
        return sum(turn.asking_cpu_s for turn in self.turns) / max(1, self.rows)

    def latency_s(self, share: float) -> float:
        """Of all turns' requests together."""
        return quantile(self._latencies_s, self.unanswered, share)

    @cached_property
    def _latencies_s(self) -> tuple[float, ...]:
        return tuple(latency_s for turn in self.turns for latency_s in turn.latencies_s)


def quantile(latencies_s: Sequence[float], unanswered: int, share: float) -> float:
    """By nearest rank. A request that was not answered took for ever: left out, a service that refuses would look fast."""
    rank = max(1, math.ceil(share * (len(latencies_s) + unanswered)))
    return sorted(latencies_s)[rank - 1] if rank <= len(latencies_s) else math.inf
