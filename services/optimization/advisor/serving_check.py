"""What is fast enough by itself, held to the target through the service: that has a cost of its own for each row."""

from collections.abc import Callable
from dataclasses import dataclass, field

from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.search import Search
from services.optimization.advisor.targets import shortfall
from services.optimization.report import Interval


@dataclass
class ServingCheck:
    """Serves what the search would end on, or train: a shape is served as fast as what is trained from it.

    `serve` gives the speed-up of a short run; None where that cannot be tried. What is not surely fast enough has the search want
    more: it is held to the target by its lower bound, as the final measurement will be.
    """

    search: Search
    target: float | None
    serve: Callable[[Rung], Interval | None]
    say: Callable[[str], None]
    _sure: set[str] = field(default_factory=set, init=False)  # shapes that were served fast enough

    def after(self, trial: Trial) -> None:
        """Call it once the search has learnt of the trial."""
        rung = trial.rung
        if self.target is None or trial.speedup is None or rung.shape in self._sure or not self._is_due(trial):
            return
        self.say(f"serving {rung.name}")
        found = self.serve(rung)
        if found is None:
            return
        more = shortfall(self.target, found)
        told = "" if more == 1 else f": not surely {self.target:g} in the final run"
        self.say(f"{rung.name} is served {found.estimate:.2f} times as fast ({found.low:.2f} to {found.high:.2f}){told}")
        if more > 1:
            self.search.want_more(trial.speedup.estimate * more)
        elif rung.is_shape:
            self._sure.add(rung.name)

    def _is_due(self, trial: Trial) -> bool:
        wanted = self.search.wanted
        return wanted.is_reached_by(trial) if trial.rung.is_shape else wanted.is_met_by(trial)
