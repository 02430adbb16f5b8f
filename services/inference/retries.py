"""When a load that failed is tried again, as a pure decision: later each time, replicas not together."""

from collections.abc import Hashable
from dataclasses import dataclass

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0


@dataclass(frozen=True, slots=True)
class _Failed:
    times: int
    retry_at: float


class Retries:
    """By key; times are seconds on one clock."""

    def __init__(self) -> None:
        self._failed: dict[Hashable, _Failed] = {}

    def add(self, key: Hashable, now: float, spread: float) -> None:
        """One more failure; `spread`, drawn from 0 to 1, moves the next try by up to a fifth to either side."""
        times = self._failed[key].times if key in self._failed else 0
        pause_s = min(LONGEST_PAUSE_S, SHORTEST_PAUSE_S * 2.0**times)
        self._failed[key] = _Failed(times + 1, now + pause_s * (0.8 + 0.4 * spread))

    def is_due(self, key: Hashable, now: float) -> bool:
        """Whether nothing has failed, or it is time to try again."""
        failed = self._failed.get(key)
        return failed is None or now >= failed.retry_at

    def clear(self, key: Hashable) -> None:
        """After a success, and where somebody asks by hand."""
        self._failed.pop(key, None)
