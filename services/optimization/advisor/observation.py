"""What one trial measured, and where: the model, the data, the machine's software and the day."""

from typing import Any, Self

from pydantic import Field

from services.optimization.advisor.rung import Trial
from services.repository.manifest import Frozen

MEASURED_SPREAD = 0.05  # of the logarithm of a speed-up that was measured in a short run
BOUND_SPREADS = 1.96  # standard deviations from an estimate to a bound of its 95 % interval
INTERVAL_SPREADS = 2 * BOUND_SPREADS


class Context(Frozen):
    """Where a trial is made: what of the model, the data, the software and the day decides how much it says of another."""

    model: str = Field("", description="digest of the original")
    data: str = Field("", description="digest of what recipes are made of and judged by, and the seed; empty where that is not known")
    megabytes: float = Field(1.0, gt=0)
    layers: int = Field(0, ge=0)
    hidden_size: int = Field(0, ge=0)
    characters: float = Field(0.0, ge=0, description="median of the evaluation texts; 0 where examples are none")
    training_rows: int = Field(0, ge=0, description="that training has; of a trial, that it trained on")
    threads: int = Field(1, ge=1)
    libraries: str = Field("", description="digest of their versions")
    metric: str = Field("", description="that the loss is of")
    day: float = Field(0.0, description="since 1970")


NOWHERE = Context()


class Observation(Frozen):
    """What one trial measured beside its original."""

    parts: tuple[str, ...] = Field(min_length=1)
    context: Context
    speedup: float = Field(gt=0)
    size_ratio: float = Field(gt=0)
    loss: float | None = Field(None, ge=0, description="a gain counts as none; absent of a shape, whose answers are not judged")
    loss_spread: float = Field(0.0, ge=0, description="standard deviation, by the evaluation examples")

    @classmethod
    def of(cls, trial: Trial, context: Context) -> Self | None:
        """None of what could not be made: it has no figures."""
        if trial.speedup is None or trial.size_ratio <= 0:
            return None
        return cls(
            parts=trial.rung.parts,
            context=context if trial.rung.shape else context.model_copy(update={"training_rows": 0}),
            speedup=trial.speedup.estimate,
            size_ratio=trial.size_ratio,
            loss=None if trial.loss is None else max(0.0, trial.loss.estimate),
            loss_spread=0.0 if trial.loss is None else (trial.loss.high - trial.loss.low) / INTERVAL_SPREADS,
        )

    @property
    def identity(self) -> tuple[Any, ...]:
        """Of the same recipe, tried again in the same context."""
        return self.parts, *self.context.model_dump(exclude={"day"}).values()
