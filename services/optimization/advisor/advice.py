"""What a search tells in the end: every recipe that was tried, and why it ended."""

from services.optimization.advisor.economics import Measured, Worth
from services.optimization.advisor.goal import Goal
from services.optimization.advisor.precisions import Finding
from services.optimization.advisor.rung import Trial
from services.optimization.advisor.search import Outlook
from services.optimization.advisor.serving.served import ServedAdvice
from services.optimization.evaluation.metrics import Metric
from services.optimization.recipe import Step
from services.optimization.report import Interval
from services.repository.manifest import Frozen


class Tried(Frozen):
    """A trial in a short run, beside what was expected of it. The final run's figures are in the report."""

    name: str
    steps: tuple[Step, ...]
    is_shape: bool
    expected_speedup: float
    speedup: Interval | None
    size_ratio: float
    loss: Interval | None
    accepted: bool
    reason: str
    seconds: float

    @classmethod
    def of(cls, trial: Trial, expected_speedup: float) -> "Tried":
        return cls(
            name=trial.rung.name,
            steps=trial.rung.steps,
            is_shape=trial.rung.is_shape,
            expected_speedup=expected_speedup,
            speedup=trial.speedup,
            size_ratio=trial.size_ratio,
            loss=trial.loss,
            accepted=trial.accepted,
            reason=trial.reason,
            seconds=trial.seconds,
        )


class Skipped(Frozen):
    """What was not tried, for its small chance to meet the goal, and what that is expected by."""

    name: str
    expected_speedup: float
    chance: float
    basis: str

    @classmethod
    def of(cls, outlook: Outlook) -> "Skipped":
        expected = outlook.expected
        return cls(name=outlook.rung.name, expected_speedup=expected.speedup.median, chance=outlook.chance, basis=expected.basis)


class Advice(Frozen):
    """In the order of the search."""

    goal: Goal
    metric: Metric = Metric.FIDELITY  # that the trials' losses are of
    trials: tuple[Tried, ...] = ()
    stopped_because: str = ""
    is_target_met: bool = False
    front: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()  # the likeliest first
    precisions: tuple[Finding, ...] = ()  # one for each, where precisions alone were asked for
    seconds: float = 0.0
    served: ServedAdvice | None = None
    serving_note: str = ""  # why there is none
    missed: tuple[str, ...] = ()  # targets that the final measurements do not reach, a sentence each
    measured: Measured | None = None  # what its worth follows from
    worth: Worth | None = None
