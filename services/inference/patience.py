"""How long a cache that fails is left alone."""

from collections.abc import Callable

import structlog

log = structlog.get_logger("hone.answers")

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


class Patience:
    """Each failure after a pause doubles the next one; a success makes it short again. `clock` tells seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pause_s = _SHORTEST_PAUSE_S
        self._paused_until = 0.0

    @property
    def paused(self) -> bool:
        """Whether the cache is left alone for the moment."""
        return self._clock() < self._paused_until

    def failed(self, reason: str) -> None:
        """Failures during a pause are of calls that had begun before it, and count as one with that."""
        if self.paused:
            return
        self._paused_until = self._clock() + self._pause_s
        log.warning("the cache does not answer; going on without it", reason=reason[:200], pause_s=self._pause_s)
        self._pause_s = min(_LONGEST_PAUSE_S, self._pause_s * 2)

    def succeeded(self) -> None:
        self._pause_s = _SHORTEST_PAUSE_S
