"""What is expected of a recipe: measured where it was, else what trials and rules say of its parts. No model, no clock, no file."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from services.optimization.advisor.guess import Guess, Loss, Prior
from services.optimization.advisor.learning import Belief
from services.optimization.advisor.observation import BOUND_SPREADS, INTERVAL_SPREADS, MEASURED_SPREAD, Context, Observation
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.report import Interval

# Share of examples on which a recipe is expected to be right where the original is not, or the reverse.
_TRAINED_DISAGREES, _QUANTIZED_DISAGREES = 0.1, 0.02
_TRAINING_SPREAD = 0.01  # of the loss of what is trained, whatever judges it: students have been seen to gain, too
_REPEATED = 0.3  # of the spread by the examples, that is left where the same recipe is made again


class Expectations:
    """Of one model, from priors, the evidence of earlier searches (the oldest first), and this one's trials.

    A loss is expected as these examples are going to tell it. `counted` of them are right or wrong; 0 where the loss is of another kind.
    """

    def __init__(self, priors: Mapping[str, Prior], here: Context, evidence: Sequence[Observation], counted: int = 0) -> None:
        self._priors, self._here, self._evidence, self._counted = priors, here, [*evidence], counted
        self._belief = Belief(priors, here, self._evidence)
        self._trials: list[Trial] = []

    def learn(self, trial: Trial) -> None:
        self._trials.append(trial)
        found = Observation.of(trial, self._here)
        if found is not None:
            self._evidence.append(found)
            self._belief = Belief(self._priors, self._here, self._evidence)

    def of(self, rung: Rung) -> Prior:
        """Measured for as many of its parts as were, together; the other parts by what is believed of them."""
        fast = self._closest(rung, lambda trial: trial.speedup is not None)
        speedup, size_ratio = Guess(1.0, 0.0), Guess(1.0, 0.0)
        if fast is not None and fast.speedup is not None:
            speedup, size_ratio = Guess(fast.speedup.estimate, MEASURED_SPREAD), Guess(fast.size_ratio, 0.0)
        others = self._belief.of(_missing(rung, fast))
        speedup, size_ratio = speedup * others.speedup, size_ratio * others.size_ratio
        basis = ", ".join(filter(None, ["measured" if fast is not None else "", others.basis]))
        return Prior(speedup, size_ratio, self._loss(rung), basis)

    def doubt(self, rung: Rung) -> float:
        """How far the worse bound of its loss is going to lie from the estimate: the gates judge by that bound."""
        known = self._belief.known_loss(rung.parts)
        if known is not None:
            return BOUND_SPREADS * known.spread
        return self._doubt(is_trained=bool(rung.training)) if self._is_lossy(rung.parts) else 0.0

    def _doubt(self, *, is_trained: bool) -> float:
        trials = [trial for trial in self._trials if bool(trial.rung.training) is is_trained and self._is_lossy(trial.rung.parts)]
        losses = [trial.loss for trial in trials if trial.loss is not None]
        if losses:
            return statistics.median(loss.high - loss.estimate for loss in losses)
        share = _TRAINED_DISAGREES if is_trained else _QUANTIZED_DISAGREES
        return BOUND_SPREADS * math.sqrt(share / self._counted) if self._counted else 0.0

    def _is_lossy(self, parts: Iterable[str]) -> bool:
        """Whether a model with them may answer otherwise than without: an exported one does not."""
        return any(self._priors[part].loss.mean > 0 for part in parts)

    def _loss(self, rung: Rung) -> Loss:
        known = self._belief.known_loss(rung.parts)
        if known is not None:
            return Loss(0.0, known.measured, _REPEATED * known.spread)
        good = self._closest(rung, lambda trial: trial.loss is not None)
        added = _missing(rung, good)
        carried = _carried(rung, good, good.loss) if good is not None and good.loss is not None else Loss(0.0)
        found = carried + self._belief.of(added).loss + self._unseen(rung, added)
        if rung.training not in added:
            return found
        # What was trained for longer, or is larger, tells what training comes to here: less is not likely to be lost.
        trials = [(trial, trial.loss) for trial in self._trials if trial.rung.training in rung.no_worse]
        floors = [self._floor(rung, trial, lost) for trial, lost in trials if lost is not None]
        return max(floors, key=lambda floor: floor.measured + floor.mean, default=found)

    def _floor(self, rung: Rung, trial: Trial, lost: Interval) -> Loss:
        """As much as the trial, without what its engine is expected to lose, and with what the rung's own parts are."""
        engine = [part for part in trial.rung.parts if part not in rung.parts and part != trial.rung.training]
        own = [part for part in rung.parts if part not in trial.rung.parts]
        by_engine, more = self._belief.of(engine).loss.mean, self._belief.of(own).loss.mean
        if trial.rung.training != rung.training:
            more = max(0.0, more - self._belief.of([trial.rung.training]).loss.mean)
        return Loss(more, lost.estimate - by_engine, by_engine) + self._unseen(rung, [*engine, *own])

    def _unseen(self, rung: Rung, changed: Sequence[str]) -> Loss:
        """What chance adds to the loss of a model that differs by these parts from what was measured."""
        if rung.training and rung.training in changed:
            return Loss(0.0, 0.0, math.hypot(self._doubt(is_trained=True) / BOUND_SPREADS, _TRAINING_SPREAD))
        return Loss(0.0, 0.0, self._doubt(is_trained=False) / BOUND_SPREADS if self._is_lossy(changed) else 0.0)

    def _closest(self, rung: Rung, told: Callable[[Trial], bool]) -> Trial | None:
        """The trial of the most of its parts, that has what is asked for."""
        known = [trial for trial in self._trials if told(trial) and set(trial.rung.parts) <= set(rung.parts)]
        return max(known, key=lambda trial: len(trial.rung.parts), default=None)


def _missing(rung: Rung, trial: Trial | None) -> list[str]:
    known = trial.rung.parts if trial is not None else ()
    return [part for part in rung.parts if part not in known]


def _carried(rung: Rung, trial: Trial, lost: Interval) -> Loss:
    """What a rung loses with a trial's parts: surely that much where it goes on from the very model, else about as much."""
    goes_on = rung.steps[: len(trial.rung.steps)] == trial.rung.steps
    return Loss(0.0, lost.estimate) if goes_on else Loss(max(0.0, lost.estimate), 0.0, _spread(lost))


def _spread(lost: Interval) -> float:
    return (lost.high - lost.low) / INTERVAL_SPREADS
