"""Which recipe to try next, on the way from a goal to the first recipe that meets it. No model, no clock, no file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.optimization.advisor.expectations import Expectations
from services.optimization.advisor.guess import Guess, Prior
from services.optimization.advisor.observation import NOWHERE, Context, Observation
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.served_run import ServedRun
from services.optimization.advisor.wanted import Wanted
from services.optimization.recipe import Step
from services.optimization.report import Interval

HOPELESS = 0.02  # chance below which a recipe is not worth any time
BETTER = 1.05  # without a target, what is worth going on for


@dataclass(frozen=True, slots=True)
class Stop:
    """Why there is no next one."""

    reason: str
    is_reached: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of a rung now, and in how many seconds: some of them to look at its shape, where that was not seen yet."""

    rung: Rung
    expected: Prior
    reached: float  # chance that its speed and size reach what is wanted
    kept: float  # chance that its quality does
    seconds: float
    look_seconds: float

    @property
    def chance(self) -> float:
        return self.reached * self.kept

    @property
    def index(self) -> float:
        """The chance for each second that is likely to be spent: what a look shows to be too slow is not trained."""
        likely = self.look_seconds + (self.reached if self.look_seconds else 1.0) * (self.seconds - self.look_seconds)
        return self.chance / max(likely, 1e-9)


class Search:
    """Tries first what has the highest chance for each second that it costs.

    Among things of which any may succeed, each with a chance and a cost of its own, that order finds the first success at the
    lowest expected cost (the classical result for searching boxes one by one). A smaller model's untrained shape costs seconds and
    tells the speed that training cannot change: it is looked at first, and training counts by the chance that it follows.

    Chances are of priors at first: the published rule of thumb, corrected by what earlier jobs measured on this machine. Each trial
    replaces guesses by measurements, for the recipe and for those built upon it, and corrects what is expected of its parts elsewhere.
    A prior never accepts or rejects anything: it says what is tried first, and what is not worth its time.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        wanted: Wanted,
        priors: Mapping[str, Prior],
        *,
        exhaustive: bool = False,
        evidence: Sequence[Observation] = (),
        here: Context = NOWHERE,
        counted: int = 0,
        serving_seconds: float = 0.0,
    ) -> None:
        """`priors` by part; every part of every rung has one. `evidence` is of earlier searches, the oldest first. `counted` examples
        are right or wrong; 0 where the loss is of another kind. A short run through the service takes `serving_seconds`.

        `exhaustive` tries all, whatever is met or hopeless, while there is time.
        """
        self.wanted = wanted
        self.trials: list[Trial] = []
        self.is_exhaustive = exhaustive
        self._serving_seconds = serving_seconds if wanted.served_speedup is not None else 0.0
        self._rungs = {rung.name: rung for rung in rungs}
        self.priors, self._expectations = priors, Expectations(priors, here, evidence, counted)
        self._served: dict[str, ServedRun] = {}
        self._faster = 0.0  # by itself, that something has to be which was not served

    def learn(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._expectations.learn(trial)

    def learn_served(self, trial: Trial, served: Interval) -> None:
        """What a short run through the service measured: as much of another's speed-up is expected to be left there.

        Beside something trained and accepted that is doubtful there, what was not served itself has to be faster.
        """
        target = self.wanted.served_speedup
        if trial.speedup is None or target is None:
            return
        run = ServedRun(trial.speedup.estimate, served)
        self._served[trial.rung.name] = run
        if trial.accepted and not run.is_sure_of(target, run.own):
            self._faster = max(self._faster, run.enough(target))

    def is_surely_served(self, trial: Trial) -> bool:
        """Whether the target was measured, and is likely to be met by the final run; a shape stands for what is trained from it."""
        target, run = self.wanted.served_speedup, self._served.get(trial.rung.name) or self._served.get(trial.rung.shape)
        if target is None:
            return True
        return run is not None and trial.speedup is not None and run.is_sure_of(target, trial.speedup.estimate)

    def _is_met_by(self, trial: Trial) -> bool:
        """What could not be served is taken for as fast as it is by itself."""
        is_served = trial.rung.name in self._served or trial.rung.shape in self._served
        return self.wanted.is_met_by(trial) and (self.is_surely_served(trial) or not is_served)

    @property
    def left(self) -> tuple[Rung, ...]:
        """Neither tried nor pointless by now."""
        tried = {trial.rung.name for trial in self.trials}
        return tuple(rung for rung in self._rungs.values() if rung.name not in tried)

    def outlooks(self) -> list[Outlook]:
        """Of all that is left to be judged whole, the best first; a shape comes with what it is the shape of."""
        found = [self._outlook(rung) for rung in self.left if not rung.is_shape]
        return sorted(found, key=lambda outlook: outlook.index, reverse=True)

    def skipped(self) -> list[Outlook]:
        """Left out for their small chance to meet the goal, the likeliest first; not what is built upon a failure, or has no time left.

        None is left out for ever: what is believed of it follows less from a trial the less alike the model, the older the trial and
        the software are, and far from all of them the rule of thumb has its chance again. What lost too much of the very same model and
        data is left out until one of them or a library changes: it would come to the same answers.
        """
        found = [outlook for outlook in self.outlooks() if outlook.chance < HOPELESS and self._can_be_made(outlook.rung)]
        return [] if self.is_exhaustive else sorted(found, key=lambda outlook: outlook.chance, reverse=True)

    def next(self, seconds_left: float) -> Rung | Stop:
        """The rung to try now, or why none is."""
        is_met = self.wanted.has_target and any(map(self._is_met_by, self.trials))
        if is_met and not self.is_exhaustive:
            return Stop("the target is met", is_reached=True)
        outlooks = self.outlooks()
        if not outlooks:
            return Stop("everything was tried", is_met)
        hopeful = [outlook for outlook in outlooks if outlook.chance >= HOPELESS or self.is_exhaustive]
        if not hopeful:
            return Stop("nothing that is left is likely to meet the target" if self.wanted.has_target else "nothing better is likely")
        affordable = [outlook for outlook in hopeful if outlook.seconds <= seconds_left]
        if not affordable:
            return Stop(f"the time that is left, {seconds_left:.0f} s, is too short for what is left to try", is_met)
        best = affordable[0].rung
        return self._unseen_shape(best) or best

    def _unseen_shape(self, rung: Rung) -> Rung | None:
        shape = self._rungs.get(rung.shape)
        return shape if shape is not None and self._trial(shape.name) is None else None

    def _trial(self, name: str) -> Trial | None:
        return next((trial for trial in self.trials if trial.rung.name == name), None)

    def _outlook(self, rung: Rung) -> Outlook:
        expected, shape = self._expectations.of(rung), self._unseen_shape(rung)
        reached = self._chance_to_reach(rung, expected) if self._can_be_made(rung) else 0.0
        kept = expected.loss.chance_within(self.wanted.max_loss - self._expectations.doubt(rung))
        look_seconds = self.seconds_of(shape) + self._serving_seconds if shape is not None else 0.0
        own_seconds = self.seconds_of(rung) + (0.0 if rung.shape else self._serving_seconds)
        return Outlook(rung, expected, reached, kept, look_seconds + own_seconds, look_seconds)

    def seconds_of(self, rung: Rung) -> float:
        """To make and measure it now: the steps that it begins with were made already where a trial began with them."""
        made = max((_shared(rung.steps, trial.rung.steps) for trial in self.trials if trial.is_feasible), default=0)
        return rung.seconds - sum(rung.step_seconds[:made])

    def _chance_to_reach(self, rung: Rung, expected: Prior) -> float:
        fast, small = self._bounds()
        quick = min(expected.speedup.chance_of(fast), self._chance_served(rung, expected.speedup))
        return quick * expected.size_ratio.chance_of(small)

    def _chance_served(self, rung: Rung, speedup: Guess) -> float:
        """That it meets the target through the service: by its shape's run there, or by that of what is about as fast by itself."""
        target, run = self.wanted.served_speedup, self._served.get(rung.shape)
        if target is None:
            return 1.0
        has_rival = any(trial.accepted and trial.rung.shape == rung.shape for trial in self.trials)  # as fast, whatever it was taught
        if run is not None and not has_rival:
            return (speedup * run.share).chance_of(target)
        if not self._served:
            return speedup.chance_of(target)
        nearest = min(self._served.values(), key=lambda run: abs(math.log(run.own / speedup.median)))
        return min((speedup * nearest.share).chance_of(target), speedup.chance_of(self._faster))

    def _bounds(self) -> tuple[float, float]:
        """Speed-up and size ratio to reach: the target, or, where there is none, more than the best so far."""
        if self.wanted.has_target:
            return self.wanted.speedup or 0.0, self.wanted.size_ratio or 0.0
        best = BETTER * max((self.wanted.merit(trial) for trial in self.trials if trial.accepted), default=1.0)
        return (0.0, best) if self.wanted.is_small_best else (best, 0.0)

    def _can_be_made(self, rung: Rung) -> bool:
        """Not what is built upon a failure: the same steps would fail again."""
        failed = [trial.rung.steps for trial in self.trials if not trial.is_feasible]
        return not any(rung.steps[: len(steps)] == steps for steps in failed)


def _shared(one: Sequence[Step], other: Sequence[Step]) -> int:
    """Steps that both begin with."""
    return next((index for index, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs), min(len(one), len(other)))
