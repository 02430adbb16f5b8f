"""A goal as the search takes it."""

from dataclasses import dataclass

from services.optimization.advisor.rung import Trial


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a recipe has to reach beside the original; None is not asked for. `max_loss` is in units of the metric."""

    max_loss: float
    speedup: float | None = None
    size_ratio: float | None = None
    served_speedup: float | None = None
    is_small_best: bool = False  # without a target: bytes are sought, not speed

    def is_met_by(self, trial: Trial) -> bool:
        """By the estimates of a short measurement: the final run judges by the worse bounds."""
        return trial.accepted and self.is_reached_by(trial)

    def is_reached_by(self, trial: Trial) -> bool:
        """By its speed and size, whatever it answers."""
        if trial.speedup is None:
            return False
        fast = trial.speedup.estimate >= max(self.speedup or 0.0, self.served_speedup or 0.0)  # none is served faster than it is itself
        return fast and (self.size_ratio is None or trial.size_ratio >= self.size_ratio)

    @property
    def has_target(self) -> bool:
        return any(target is not None for target in (self.speedup, self.size_ratio, self.served_speedup))

    def merit(self, trial: Trial) -> float:
        """The ratio that is sought."""
        if self.is_small_best:
            return trial.size_ratio
        return trial.speedup.estimate if trial.speedup is not None else 0.0
