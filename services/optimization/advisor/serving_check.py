"""What is fast enough by itself, held to the target through the service: that has a cost of its own for each row."""

from collections.abc import Callable
from dataclasses import dataclass

from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.search import Search
from services.optimization.report import Interval


@dataclass
class ServingCheck:
    """Serves what the search would train, or end on: an untrained shape is served as fast as what is trained from it.

    `serve` gives the speed-up of a short run; None where that cannot be tried, which is asked once.
    """

    search: Search
    serve: Callable[[Rung], Interval | None]
    say: Callable[[str], None]
    _can_serve: bool = True

    def after(self, trial: Trial) -> None:
        """Call it once the search has learnt of the trial."""
        rung = trial.rung
        if not self._can_serve or not self._is_due(trial) or self.search.is_surely_served(rung):
            return
        self.say(f"serving {rung.name}")
        found = self.serve(rung)
        if found is None:
            self._can_serve = False
            return
        self.search.learn_served(trial, found)
        doubt = "" if self.search.is_surely_served(rung) else f": not surely {self.search.wanted.served_speedup:g} in the end"
        self.say(f"{rung.name} is served {found.estimate:.2f} times as fast ({found.low:.2f} to {found.high:.2f}){doubt}")

    def _is_due(self, trial: Trial) -> bool:
        wanted = self.search.wanted
        return wanted.is_reached_by(trial) if trial.rung.is_shape else wanted.is_met_by(trial)
