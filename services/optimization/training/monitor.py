"""A run's progress as others see it: seldom enough not to be felt."""

from collections.abc import Callable, Mapping

from services.optimization.jobs.job import NO_METRICS
from services.optimization.techniques.technique import Tell

SECONDS_BETWEEN = 0.25


class Monitor:
    """Tells within `share` of a technique's own progress; curve points at most four times a second, log lines always."""

    def __init__(self, tell: Tell, share: tuple[float, float], clock: Callable[[], float]) -> None:
        self._tell = tell
        self._begin, self._end = share
        self._clock = clock
        self._last = -SECONDS_BETWEEN
        self._tenth = -1

    def point(self, fraction: float, step: int, metrics: Mapping[str, float]) -> None:
        if self._clock() - self._last >= SECONDS_BETWEEN:
            self.line(fraction, "", step, metrics)

    def advance(self, fraction: float, message: str) -> None:
        """The fraction as seldom as points, the message once in a tenth of the way."""
        tenth = int(10 * fraction)
        if tenth != self._tenth:
            self._tenth = tenth
            self.line(fraction, message)
        else:
            self.point(fraction, 0, NO_METRICS)

    def line(self, fraction: float, message: str, step: int = 0, metrics: Mapping[str, float] = NO_METRICS) -> None:
        """Raises BudgetExceeded past the job's time."""
        self._last = self._clock()
        self._tell(self._begin + (self._end - self._begin) * fraction, message, step=step, metrics=metrics)
