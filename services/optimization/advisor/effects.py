"""Effects that add up, each with a Gaussian prior and alike in like contexts, given sums of them that were observed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Self

import numpy as np
from numpy.typing import NDArray

from services.optimization.advisor.guess import Guess
from services.optimization.advisor.observation import Context, Observation

Floats = NDArray[np.float64]

_REACH = 2.0  # distance at which a trial says 60 % of what it says nearby; 1 is a model e times as large
_DAYS = 180.0  # that are a distance of 1: systems, kernels and this program change


@dataclass(frozen=True, slots=True)
class Noise:
    """Standard deviations of logarithms."""

    unlearnt: float  # of an effect, from one recipe of one model to another recipe or model in the same context
    measured: float


@dataclass(frozen=True, slots=True)
class Trials:
    """`t` trials of `p` parts: what each is of, and how alike it is to here and to the others; `same` where the model is the very one."""

    members: Floats  # [t, p] 1 where the trial has the part
    nearby: Floats  # [t]
    between: Floats  # [t, t]
    nearby_same: Floats  # [t] 0 where the model is another
    between_same: Floats  # [t, t]

    @classmethod
    def of(cls, found: Sequence[Observation], members: Floats, here: Context) -> Self:
        """`members` [t, p]."""
        where = [one.context for one in found]
        nearby, between = _likeness([here], where)[0], _likeness(where, where)
        models = np.array([at.model for at in where], np.str_)
        return cls(members, nearby, between, nearby * (models == here.model), between * (models[:, np.newaxis] == models))


class Effects:
    """Of one kind of ratio: the Gaussian process over contexts, given the observations."""

    def __init__(self, guesses: Sequence[Guess], noise: Noise, trials: Trials, logs: Floats) -> None:
        """`logs` [t] of the ratios that were measured."""
        spreads = floats(guess.spread for guess in guesses)
        self._guesses, self._trials = guesses, trials
        self._own = np.minimum(spreads, noise.unlearnt) ** 2
        self._learnt = spreads**2 - self._own
        self._moving = spreads > 0  # a model that is trained is as fast as its shape
        members, moving = trials.members, trials.members[:, self._moving]
        everywhere = (members * self._learnt) @ members.T * trials.between
        is_recipe = (moving[:, np.newaxis] == moving).all(axis=2)
        of_recipe = (members @ self._own) * is_recipe * trials.between_same
        self._precision = np.linalg.inv(everywhere + of_recipe + noise.measured**2 * np.eye(len(logs)))
        self._weighed = self._precision @ (logs - members @ np.log(floats(guess.median for guess in guesses)))

    def of(self, wanted: Floats) -> Guess:
        """Of the parts that are 1 in `wanted`, together."""
        rule = reduce(mul, (guess for guess, named in zip(self._guesses, wanted, strict=True) if named), Guess(1.0, 0.0))
        members, is_moving = self._trials.members, self._moving
        is_recipe = (members[:, is_moving] == wanted[is_moving]).all(axis=1)
        shared = (members * self._learnt) @ wanted * self._trials.nearby + wanted @ self._own * is_recipe * self._trials.nearby_same
        if not shared.any():
            return rule
        variance = rule.spread**2 - shared @ self._precision @ shared
        return Guess(rule.median * math.exp(shared @ self._weighed), math.sqrt(max(0.0, variance)))


def _likeness(ones: Sequence[Context], others: Sequence[Context]) -> Floats:
    """[ones, others], 1 for equal contexts, towards 0 with their distance."""
    apart = _places(ones)[:, np.newaxis] - _places(others)
    mine, theirs = (np.array([at.libraries for at in contexts], np.str_) for contexts in (ones, others))
    likeness: Floats = np.exp(-0.5 * ((apart**2).sum(axis=2) + (mine[:, np.newaxis] != theirs)) / _REACH**2)
    return likeness


def _places(contexts: Sequence[Context]) -> Floats:
    """[contexts, coordinates]: ratios count alike at every size."""
    found = [
        (math.log(at.megabytes), math.log1p(at.layers), math.log1p(at.hidden_size), math.log(at.threads), at.day / _DAYS) for at in contexts
    ]
    return np.array(found).reshape(len(contexts), 5)


def floats(values: Iterable[float]) -> Floats:
    return np.array(list(values), np.float64)
