"""One recipe that may be tried, and what came of trying it."""

from dataclasses import dataclass

from services.optimization.recipe import Step
from services.optimization.report import Interval


@dataclass(frozen=True, slots=True)
class Rung:
    """A recipe on the ladder, and what it is made of: every part has a prior, whatever it is combined with."""

    name: str
    steps: tuple[Step, ...]
    parts: tuple[str, ...]
    seconds: float  # to make and to measure
    is_shape: bool = False  # untrained: its speed and size are those of the trained one, its answers are not
    shape: str = ""  # the rung that is this one untrained
    training: str = ""  # its part that is trained
    no_worse: tuple[str, ...] = ()  # trainings that are expected to lose no more, its own among them
    is_precision: bool = False  # the model as it is, in one precision
    step_seconds: tuple[float, ...] = ()  # of `seconds`, each step's: what was made already costs nothing


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured beside the original; absent of what could not be made, and the loss of a shape."""

    rung: Rung
    speedup: Interval | None = None
    size_ratio: float = 0.0
    loss: Interval | None = None
    accepted: bool = False  # by the gates of quality
    reason: str = ""
    seconds: float = 0.0

    @property
    def is_feasible(self) -> bool:
        return self.speedup is not None
