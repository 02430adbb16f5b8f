"""What trials say of recipes that were not tried: the rule of thumb, corrected by what was measured. No model, no clock, no file.

The logarithm of a recipe's speed-up is the sum of its parts' effects, and so is that of its size ratio. This is Bayesian linear
regression: the rule of thumb is the Gaussian prior of each effect, and every trial is an observation of a sum of them. An effect may
differ from one context to another, by a Gaussian process over contexts with a squared exponential covariance (Rasmussen and Williams
2006, chapter 2): a trial of a similar model says much, one of another size, of other libraries or of long ago says little, and far away
the rule of thumb stands as it was. Ten trials in one context are no ten contexts, which noise that grows with distance would make of them.

A part of each effect belongs to a single recipe of a single model and is learnt from that one alone: of others, expectations do not
become certain.

The loss of a part is exponential, the prior of its mean the conjugate inverse gamma distribution (that of its rate is a gamma), whose
update is a weighted mean of the rule of thumb and of what was lost. A trial's weight falls with its distance (the power prior of Ibrahim
and Chen 2000). What a recipe lost is shared among its parts in proportion to what each is expected to lose, repeated until it settles:
that keeps the sum, where a part charged with all that the others are not expected to lose would be blamed twice.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from services.optimization.advisor.effects import Effects, Floats, Noise, Trials, floats
from services.optimization.advisor.guess import Loss, Prior
from services.optimization.advisor.observation import MEASURED_SPREAD, Context, Observation

_SPEED_NOISE, _SIZE_NOISE = Noise(0.1, MEASURED_SPREAD), Noise(0.05, 0.01)  # sizes are counted, not timed
_ROWS_REACH = math.log(2)  # of the logarithm of the rows that were trained on
_RULE_WEIGHT = 2.0  # trials that the rule of thumb of a loss is worth
_LEAST_SHARE = 1e-4  # of the loss that a part is charged with although none was expected
_ROUNDS = 30
_TELLS = 0.1  # likeness from which a trial is counted as a basis


class Belief:
    """What parts of recipes are expected to bring here. Without evidence that is their priors; evidence never makes a speed less sure.

    Of several trials of one recipe in one context the last one counts. A trial with a part that has no prior says nothing.
    """

    def __init__(self, priors: Mapping[str, Prior], here: Context, evidence: Sequence[Observation] = ()) -> None:
        self._priors = priors
        self._index = {part: index for index, part in enumerate(priors)}
        found = [one for one in _latest(evidence) if priors.keys() >= set(one.parts)]
        members = np.array([self._members(one.parts) for one in found]).reshape(len(found), len(priors))
        trials = Trials.of(found, members, here)
        weights = trials.nearby * np.array([_loss_weight(here, one) for one in found])
        speedups, size_ratios = floats(one.speedup for one in found), floats(one.size_ratio for one in found)
        self._speedup = Effects([prior.speedup for prior in priors.values()], _SPEED_NOISE, trials, np.log(speedups))
        self._size_ratio = Effects([prior.size_ratio for prior in priors.values()], _SIZE_NOISE, trials, np.log(size_ratios))
        self._losses = _mean_losses(
            floats(prior.loss.mean for prior in priors.values()), members, floats(one.loss or 0 for one in found), weights
        )
        self._repeated = {frozenset(one.parts): one for one in found if _is_repeated(here, one)}
        self._speed_trials, self._loss_trials = ((found >= _TELLS) @ members for found in (trials.nearby, weights))

    def of(self, parts: Sequence[str]) -> Prior:
        """Of these together, which is surer than of one by one: a trial of two tells their sum well, and little of either."""
        wanted = self._members(parts)
        return Prior(self._speedup.of(wanted), self._size_ratio.of(wanted), self._loss(parts), self._basis(parts))

    def known_loss(self, parts: Sequence[str]) -> Loss | None:
        """As it was measured, where the same recipe of the same model comes to the same answers to the same examples again."""
        known = self._repeated.get(frozenset(parts))
        return None if known is None or known.loss is None else Loss(0.0, known.loss, known.loss_spread)

    def _loss(self, parts: Sequence[str]) -> Loss:
        return Loss(sum(float(self._losses[self._index[part]]) for part in parts))

    def _members(self, parts: Sequence[str]) -> Floats:
        """[parts], 1 at those named."""
        found = np.zeros(len(self._index))
        found[[self._index[part] for part in parts]] = 1.0
        return found

    def _basis(self, parts: Sequence[str]) -> str:
        """By the trials of the part that was tried least, and what the others are expected by that were not tried."""
        counts = {part: self._trials(part) for part in parts}
        least = min(filter(None, counts.values()), default=0)
        tried = [f"{least} trial{'s' if least > 1 else ''} on this machine"] if least else []
        return ", ".join(dict.fromkeys([*tried, *(self._priors[part].basis for part, count in counts.items() if not count)]))

    def _trials(self, part: str) -> int:
        """Of a part that changes no speed, as training, those that say something of its loss."""
        trials = self._speed_trials if self._priors[part].speedup.spread else self._loss_trials
        return int(trials[self._index[part]])


def _mean_losses(rule: Floats, members: Floats, losses: Floats, weights: Floats) -> Floats:
    """[p] from the rule's [p], members [t, p], losses [t] and weights [t]."""
    found = rule
    for _ in range(_ROUNDS if len(losses) else 0):
        expected = members * (found + _LEAST_SHARE)
        charged = losses[:, np.newaxis] * expected / expected.sum(axis=1, keepdims=True)
        found = (_RULE_WEIGHT * rule + weights @ charged) / (_RULE_WEIGHT + weights @ members)
    return found


def _latest(evidence: Sequence[Observation]) -> list[Observation]:
    return list({one.identity: one for one in evidence}.values())


def _loss_weight(here: Context, one: Observation) -> float:
    """Beside what the context's distance takes: another model learnt another task of other texts, and training hangs on its rows."""
    there = one.context
    if one.loss is None or there.metric != here.metric:
        return 0.0
    squared = float(there.model != here.model) + math.log((1 + there.characters) / (1 + here.characters)) ** 2
    if there.training_rows:
        squared += (math.log(there.training_rows / max(1, here.training_rows)) / _ROWS_REACH) ** 2
    return math.exp(-0.5 * squared)


def _is_repeated(here: Context, one: Observation) -> bool:
    there = one.context
    alike = (there.model, there.data, there.libraries, there.metric) == (here.model, here.data, here.libraries, here.metric)
    return alike and bool(here.data) and one.loss is not None
