"""What a job is asked to reach, where it is given no recipes."""

import math
from collections.abc import Iterator

from services.optimization.advisor.economics import Economics
from services.optimization.advisor.scenarios import PRESETS, Fault, Preset, Scenario, Targets, resolve
from services.optimization.advisor.serving.traffic import Traffic
from services.optimization.advisor.wanted import Wanted
from services.optimization.evaluation.metrics import Metric
from services.optimization.recipe import Gates, Objective
from services.repository.manifest import Frozen

_SAME_RATE = 1e-3


class Goal(Frozen):
    """A scenario, and what wins over it. No economics: nothing is priced."""

    scenario: Scenario = Scenario.THROUGHPUT
    targets: Targets = Targets()
    traffic: Traffic = Traffic()
    economics: Economics | None = None
    precisions_only: bool = False

    @property
    def preset(self) -> Preset:
        return PRESETS[self.scenario]

    @property
    def served_traffic(self) -> Traffic:
        """At the rate that the targets hold at, where they tell one: recorded gaps are scaled to it."""
        rows_per_second = self.targets.at_rows_per_second
        if rows_per_second is None:
            return self.traffic
        return self.traffic.model_copy(update={"rate": rows_per_second / self.traffic.mean_request_rows})

    def contradictions(self) -> Iterator[Fault]:
        """Between targets and traffic; recorded gaps alone are none, since they can be played at any rate."""
        asked, told = self.targets.at_rows_per_second, self.traffic.rate * self.traffic.mean_request_rows
        if asked is not None and told and not math.isclose(asked, told, rel_tol=_SAME_RATE):
            reason = f"{asked:g} rows per second, where the traffic's rate tells {told:g}"
            yield Fault(field="at_rows_per_second", reason=reason, nearest=told)

    @property
    def resolved(self) -> Targets:
        return resolve(self.preset, self.targets)


def wanted(goal: Goal, size_bytes: int, gates: Gates) -> Wanted:
    """The goal as the search takes it, for an original of so many bytes; `gates` are those `for_metric`, which hold the loss."""
    targets = goal.resolved
    size_ratio = size_bytes / targets.max_size_bytes if targets.max_size_bytes else None
    loss = gates.max_loss if gates.max_loss is not None else 1 - (gates.min_fidelity or 0)
    is_small_best = goal.preset.objective is Objective.SIZE
    return Wanted(loss, targets.min_speedup, size_ratio, targets.min_served_speedup, is_small_best)


def gates_for(goal: Goal, gates: Gates, metric: Metric) -> Gates:
    """What a candidate is held to in the end: an explicit target is a gate, and what misses it is not published.

    What `gates` tell themselves stays.
    """
    targets = goal.resolved
    told: dict[str, float] = {}
    if targets.max_loss is not None and metric is Metric.FIDELITY and gates.min_fidelity is None:
        told["min_fidelity"] = max(1e-9, 1 - targets.max_loss)
    if targets.max_loss is not None and metric is not Metric.FIDELITY and gates.max_loss is None:
        told["max_loss"] = targets.max_loss
    if targets.min_speedup is not None and goal.preset.objective is not Objective.SIZE:
        told["min_gain"] = max(gates.min_gain, targets.min_speedup)
    return gates.model_copy(update=told)
