"""Which recipe to try next, on the way from a goal to the first recipe that meets it. No model, no clock, no file."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from services.optimization.advisor.guess import Guess, Loss, Prior
from services.optimization.advisor.learning import Belief
from services.optimization.advisor.observation import INTERVAL_SPREADS, MEASURED_SPREAD, NOWHERE, Context, Observation
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.served_run import ServedRun
from services.optimization.recipe import Step
from services.optimization.report import Interval

HOPELESS = 0.02  # chance below which a recipe is not worth any time
BETTER = 1.05  # without a target, what is worth going on for
A_LOOK = 0.2  # of what training the best costs, that looking at another shape first may cost


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


@dataclass(frozen=True, slots=True)
class Stop:
    """Why there is no next one."""

    reason: str
    is_reached: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of a rung now, the chance that it meets the goal, and what it brings for each second of its cost."""

    rung: Rung
    speedup: Guess
    size_ratio: Guess
    loss: Loss
    chance: float
    seconds: float
    gain: float  # with a target that chance; without one the expected logarithm of how much better it is than the best so far
    ceiling: float  # of the gain, were it only fast and small enough
    basis: str  # of what is expected

    @property
    def index(self) -> float:
        return self.gain / max(self.seconds, 1e-9)


class Search:
    """Tries first what has the highest chance for each second that it costs; without a target, the highest expected gain for each.

    Among things of which any may succeed, each with a chance and a cost of its own, that order finds the first success at the
    lowest expected cost (the classical result for searching boxes one by one). Chances are of priors at first: the published rule
    of thumb, corrected by what earlier jobs measured on this machine. Each trial replaces guesses by measurements, for the recipe and
    for those built upon it, and corrects what is expected of its parts elsewhere. A prior never accepts or rejects anything: it says
    what is tried first, and what is not worth its time.
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
    ) -> None:
        """`priors` by part; every part of every rung has one. `evidence` is of earlier searches, the oldest first.

        `exhaustive` tries all, whatever is met or hopeless, while there is time.
        """
        self.wanted = wanted
        self.trials: list[Trial] = []
        self._exhaustive = exhaustive
        self._rungs = {rung.name: rung for rung in rungs}
        self.priors, self._here, self._evidence = priors, here, [*evidence]
        self._belief = Belief(priors, here, self._evidence)
        self._served: dict[str, ServedRun] = {}

    def learn(self, trial: Trial) -> None:
        self.trials.append(trial)
        found = Observation.of(trial, self._here)
        if found is not None:
            self._evidence.append(found)
            self._belief = Belief(self.priors, self._here, self._evidence)

    def learn_served(self, trial: Trial, served: Interval) -> None:
        """What a short run through the service measured: as much of another's speed-up is expected to be left there.

        Where what is trained and accepted is not surely fast enough, the search goes on for what is faster.
        """
        target = self.wanted.served_speedup
        if trial.speedup is None or target is None:
            return
        run = ServedRun(trial.speedup.estimate, served)
        self._served[trial.rung.name] = run
        if trial.accepted and not run.is_sure_of(target):
            self.wanted = replace(self.wanted, speedup=run.enough(target))

    def is_surely_served(self, rung: Rung) -> bool:
        """Whether the target was measured, and is likely to be met by the final run; a shape stands for what is trained from it."""
        target, run = self.wanted.served_speedup, self._served.get(rung.name) or self._served.get(rung.shape)
        return target is None or (run is not None and run.is_sure_of(target))

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
        return [] if self._exhaustive else sorted(found, key=lambda outlook: outlook.chance, reverse=True)

    def next(self, seconds_left: float) -> Rung | Stop:
        """The rung to try now, or why none is."""
        is_met = self.wanted.has_target and any(map(self.wanted.is_met_by, self.trials))
        if is_met and not self._exhaustive:
            return Stop("the target is met", is_reached=True)
        outlooks = self.outlooks()
        if not outlooks:
            return Stop("everything was tried", is_met)
        hopeful = [outlook for outlook in outlooks if outlook.chance >= HOPELESS or self._exhaustive]
        if not hopeful:
            return Stop("nothing that is left is likely to meet the target" if self.wanted.has_target else "nothing better is likely")
        affordable = [outlook for outlook in hopeful if outlook.seconds <= seconds_left]
        if not affordable:
            return Stop(f"the time that is left, {seconds_left:.0f} s, is too short for what is left to try", is_met)
        return self._unseen_before(affordable[0], affordable)

    def _unseen_before(self, best: Outlook, others: Sequence[Outlook]) -> Rung:
        """The best, or a shape to look at before it: its own, or one that might turn out to be the better thing to train.

        A shape costs seconds and tells the speed that training cannot change. Others' are looked at while that costs little beside
        the best, and they would be better were they fast enough.
        """
        own = self._unseen_shape(best.rung)
        if own is not None:
            return own
        unseen = [(outlook, shape) for outlook in others if (shape := self._unseen_shape(outlook.rung)) is not None]
        worth_a_look = [
            (outlook.ceiling / outlook.seconds, shape.name)
            for outlook, shape in unseen
            if self.seconds_of(shape) <= A_LOOK * best.seconds and outlook.ceiling / outlook.seconds > best.index
        ]
        return self._rungs[max(worth_a_look)[1]] if worth_a_look else best.rung

    def _unseen_shape(self, rung: Rung) -> Rung | None:
        shape = self._rungs.get(rung.shape)
        return shape if shape is not None and self._trial(shape.name) is None else None

    def _trial(self, name: str) -> Trial | None:
        return next((trial for trial in self.trials if trial.rung.name == name), None)

    def _outlook(self, rung: Rung) -> Outlook:
        speedup, size_ratio, loss = self._expected(rung)
        chance, gain, ceiling = self._prospects(rung, speedup, size_ratio, loss) if self._can_be_made(rung) else (0.0, 0.0, 0.0)
        shape = self._unseen_shape(rung)
        extra = self.seconds_of(shape) if shape is not None else 0.0
        return Outlook(rung, speedup, size_ratio, loss, chance, self.seconds_of(rung) + extra, gain, ceiling, self._basis(rung))

    def seconds_of(self, rung: Rung) -> float:
        """To make and measure it now: the steps that it begins with were made already where a trial began with them."""
        made = max((_shared(rung.steps, trial.rung.steps) for trial in self.trials if trial.is_feasible), default=0)
        return rung.seconds - sum(rung.step_seconds[:made])

    def _basis(self, rung: Rung) -> str:
        fast = self._closest(rung, lambda trial: trial.speedup is not None)
        told = self._belief.of(_missing(rung, fast)).basis
        return ", ".join(filter(None, ["measured" if fast is not None else "", told]))

    def _prospects(self, rung: Rung, speedup: Guess, size_ratio: Guess, loss: Loss) -> tuple[float, float, float]:
        """The chance to meet the goal, the gain, and its ceiling."""
        fast, small = self._bounds()
        doubt = self._doubt()
        seen = loss + Loss(0.0, 0.0, 2 * doubt / INTERVAL_SPREADS)
        kept = seen.chance_within(self.wanted.max_loss - doubt)
        chance = min(speedup.chance_of(fast), self._chance_served(rung, speedup)) * size_ratio.chance_of(small) * kept
        if self.wanted.has_target:
            return chance, chance, kept
        gain = kept * (size_ratio.excess_over(small) if self.wanted.is_small_best else speedup.excess_over(fast))
        return chance, gain, gain

    def _chance_served(self, rung: Rung, speedup: Guess) -> float:
        """That it meets the target through the service: by its own run there, or by that of what is about as fast by itself."""
        target = self.wanted.served_speedup
        if target is None:
            return 1.0
        runs = [self._served[name] for name in (rung.name, rung.shape) if name in self._served] or sorted(
            self._served.values(), key=lambda run: abs(math.log(run.own / speedup.median))
        )
        return (speedup * runs[0].left if runs else speedup).chance_of(target)

    def _bounds(self) -> tuple[float, float]:
        """Speed-up and size ratio to reach: the target, or, where there is none, more than the best so far."""
        if self.wanted.has_target:
            return self.wanted.speedup or 0.0, self.wanted.size_ratio or 0.0
        best = BETTER * max((self.wanted.merit(trial) for trial in self.trials if trial.accepted), default=1.0)
        return (0.0, best) if self.wanted.is_small_best else (best, 0.0)

    def _doubt(self) -> float:
        """How far the worse bound of a trained model's loss lies from its estimate, by these examples: the gates judge by that bound."""
        losses = [trial.loss for trial in self.trials if trial.loss is not None and trial.rung.shape]
        return statistics.median(loss.high - loss.estimate for loss in losses) if losses else 0.0

    def _can_be_made(self, rung: Rung) -> bool:
        """Not what is built upon a failure: the same steps would fail again."""
        failed = [trial.rung.steps for trial in self.trials if not trial.is_feasible]
        return not any(rung.steps[: len(steps)] == steps for steps in failed)

    def _expected(self, rung: Rung) -> tuple[Guess, Guess, Loss]:
        """Measured for as many of its parts as were, together; the other parts by what is believed of them."""
        fast = self._closest(rung, lambda trial: trial.speedup is not None)
        good = self._closest(rung, lambda trial: trial.loss is not None)
        speedup, size_ratio, loss = Guess(1.0, 0.0), Guess(1.0, 0.0), Loss(0.0)
        if fast is not None and fast.speedup is not None:
            speedup, size_ratio = Guess(fast.speedup.estimate, MEASURED_SPREAD), Guess(fast.size_ratio, 0.0)
        others = self._belief.of(_missing(rung, fast))
        speedup, size_ratio = speedup * others.speedup, size_ratio * others.size_ratio
        if good is not None and good.loss is not None:
            loss = _carried(rung, good, good.loss)
        return speedup, size_ratio, loss + self._belief.of(_missing(rung, good)).loss

    def _closest(self, rung: Rung, told: Callable[[Trial], bool]) -> Trial | None:
        """The trial of the most of its parts, that has what is asked for."""
        known = [trial for trial in self.trials if told(trial) and set(trial.rung.parts) <= set(rung.parts)]
        return max(known, key=lambda trial: len(trial.rung.parts), default=None)


def _missing(rung: Rung, trial: Trial | None) -> list[str]:
    known = trial.rung.parts if trial is not None else ()
    return [part for part in rung.parts if part not in known]


def _carried(rung: Rung, trial: Trial, lost: Interval) -> Loss:
    """What a rung loses with a trial's parts: surely that much where it goes on from the very model, else about as much."""
    if rung.steps[: len(trial.rung.steps)] == trial.rung.steps:
        return Loss(0.0, lost.estimate, (lost.high - lost.low) / INTERVAL_SPREADS)
    return Loss(max(0.0, lost.estimate))


def _shared(one: Sequence[Step], other: Sequence[Step]) -> int:
    """Steps that both begin with."""
    return next((index for index, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs), min(len(one), len(other)))


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Of the accepted, those that no other one beats in speed, size and loss together."""
    accepted = [trial for trial in trials if trial.accepted and trial.speedup is not None]
    return [trial for trial in accepted if not any(_beats(other, trial) for other in accepted)]


def _beats(one: Trial, other: Trial) -> bool:
    ones, others = _merits(one), _merits(other)
    return ones != others and all(mine >= theirs for mine, theirs in zip(ones, others, strict=True))


def _merits(trial: Trial) -> tuple[float, float, float]:
    """Higher is better, each of them."""
    speed = trial.speedup.estimate if trial.speedup is not None else -math.inf
    return speed, trial.size_ratio, -(trial.loss.estimate if trial.loss is not None else math.inf)
