"""What is fast enough by itself, held to the target through the service: that has a cost of its own for each row."""

from collections.abc import Callable
from dataclasses import dataclass, field

from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.search import Search
from services.optimization.report import Interval

_MOST_FAILURES = 2  # recipes that could not be served, from which on none is tried


@dataclass
class ServingCheck:
    """Serves what the search would train, or end on: an untrained shape is served as fast as what is trained from it.

    `serve` gives the speed-up of a short run; None where that cannot be tried.
    """

    search: Search
    serve: Callable[[Rung], Interval | None]
    say: Callable[[str], None]
    _failures: int = field(default=0, init=False)

    def after(self, trial: Trial) -> None:
        """Call it once the search has learnt of the trial."""
        rung, target = trial.rung, self.search.wanted.served_speedup
        if target is None or self._failures == _MOST_FAILURES or not self._is_due(trial) or self.search.is_surely_served(trial):
            return
        self.say(f"serving {rung.name}")
        found = self.serve(rung)
        if found is None:
            self._failures += 1
            self.say(f"{rung.name} could not be served for a short while: it is taken for as fast there as by itself")
            return
        self.search.learn_served(trial, found)
        doubt = "" if self.search.is_surely_served(trial) else f": not surely {target:g} in the end"
        self.say(f"{rung.name} is served {found.estimate:.2f} times as fast ({found.low:.2f} to {found.high:.2f}){doubt}")

    def _is_due(self, trial: Trial) -> bool:
        wanted = self.search.wanted
        if self.search.is_exhaustive:  # it goes on anyway
            return False
        return wanted.is_reached_by(trial) if trial.rung.is_shape else wanted.is_met_by(trial)
