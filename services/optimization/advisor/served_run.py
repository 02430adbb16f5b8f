"""What a short run through the service says of the final one, in which the target has to be met by the lower bound."""

import math
from dataclasses import dataclass

from services.optimization.advisor.guess import Guess
from services.optimization.advisor.observation import BOUND_SPREADS
from services.optimization.report import Interval

_SURE = 0.9  # chance to meet the target in the final run, from which on nothing faster is looked for
_LEAST_MORE, _MOST_DOUBTED = 1.02, 1.25  # times as fast by itself, that something has to be to do better than a doubtful one
_LEAST_SHARE = 1e-3  # of the estimate, that a lower bound is taken for


@dataclass(frozen=True, slots=True)
class ServedRun:
    """`own` is the speed-up of the model by itself, `served` what was measured of it through the service."""

    own: float
    served: Interval

    @property
    def share(self) -> Guess:
        """What of a speed-up by itself the final run's lower bound comes to.

        The final estimate varies as this one did, and its bound lies as far below it.
        """
        return Guess(self._low / self.own, math.sqrt(2) * self._doubt / BOUND_SPREADS)

    def is_sure_of(self, target: float, own: float) -> bool:
        """For what is so fast by itself."""
        return (Guess(own, 0.0) * self.share).chance_of(target) >= _SURE

    def enough(self, target: float) -> float:
        """How fast one has to be by itself to do better where this one is doubtful: what its estimate lacks is made up for whole.

        That a wide interval reaches far below says little of how slow it is: it asks for a bounded more.
        """
        doubted = min(target / self._low, _MOST_DOUBTED)
        return self.own * max(target / self.served.estimate, doubted, _LEAST_MORE)

    @property
    def _low(self) -> float:
        return max(self.served.low, _LEAST_SHARE * self.served.estimate)

    @property
    def _doubt(self) -> float:
        return math.log(self.served.estimate / self._low)
