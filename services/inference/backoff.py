"""How long to wait before something is tried again, as a pure decision."""

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Nothing before the first try, then twice as long each time; after `calm_s` without a try it starts anew."""

    first_s: float = 0.5
    most_s: float = 60.0
    calm_s: float = 120.0
    _next_s: float = 0.0
    _tried: float = -math.inf

    def delay_s(self, now: float) -> float:
        """Seconds from `now` until the next try, which then counts as tried."""
        delay = 0.0 if now - self._tried > self.calm_s else self._next_s
        self._next_s = min(self.most_s, max(self.first_s, 2 * delay))
        self._tried = now + delay
        return delay
