"""Which precisions qualify here for this model: each measured, held to the limits that the goal tells."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.scenarios import Targets
from services.optimization.environment import Gpu, has_bf16, has_fp16, has_int8_dot
from services.optimization.recipe import Objective, Step
from services.optimization.report import Interval
from services.repository.manifest import Frozen


class Precision(StrEnum):
    FP32 = "FP32"
    FP16 = "FP16"
    BF16 = "BF16"
    INT8 = "INT8"
    INT4 = "INT4"


_MADE_BY = {
    "fp16": Precision.FP16,
    "bf16": Precision.BF16,
    "dynamic_int8": Precision.INT8,
    "static_int8": Precision.INT8,
    "int4_weight_only": Precision.INT4,
}
_LACKING = {
    Precision.FP16: "AVX512_FP16, or ARM's half-precision arithmetic",
    Precision.BF16: "AVX512_BF16, AMX, or ARM's BF16",
    Precision.INT8: "VNNI, AMX, or ARM's dot products",
}
_EXACT = {bound: Interval(estimate=bound, low=bound, high=bound) for bound in (0.0, 1.0)}


class Finding(Frozen):
    """The best recipe of one precision. Without a speed-up nothing of it was measured, and `reason` says why."""

    precision: Precision
    recipe: str = ""  # empty: the original as it is, or nothing
    speedup: Interval | None = None
    size_ratio: float = 0.0
    loss: Interval | None = None
    qualifies: bool = False
    reason: str
    note: str = ""  # on this processor


@dataclass(frozen=True, slots=True)
class Limits:
    """What of a goal a short run of the model itself can tell; accuracy is held by the gates, and told in each trial."""

    objective: Objective
    targets: Targets  # resolved
    original_bytes: int

    def missed(self, trial: Trial) -> Iterator[str]:
        """A sentence for each limit. A speed-up counts by its lower bound: a precision that may be too slow does not qualify."""
        most_bytes, size_bytes = self.targets.max_size_bytes, self.original_bytes / max(trial.size_ratio, 1e-9)
        if most_bytes is not None and size_bytes > most_bytes:
            yield f"size: {size_bytes:,.0f} bytes are more than {most_bytes:,} (max_size_bytes)"
        for name in ("min_speedup", "min_served_speedup"):
            least: float | None = getattr(self.targets, name)
            if least is not None and trial.speedup is not None and trial.speedup.low < least:
                yield f"speed-up: {_show(trial.speedup)} of the model itself is not surely {least:g} ({name})"
        if not trial.accepted:
            yield f"accuracy: {trial.reason}"

    def merit(self, trial: Trial) -> tuple[bool, bool, float]:
        """Higher is better."""
        speed = trial.speedup.estimate if trial.speedup else 0.0
        return not any(self.missed(trial)), trial.accepted, trial.size_ratio if self.objective is Objective.SIZE else speed


def precision_of(steps: Sequence[Step]) -> Precision:
    """That recipes of the ladder end in."""
    return next((_MADE_BY[step.technique] for step in steps if step.technique in _MADE_BY), Precision.FP32)


def is_emulated(precision: Precision, features: frozenset[str]) -> bool:
    """Whether products in it are computed in another one, with casts around them."""
    runs = {Precision.FP16: has_fp16, Precision.BF16: has_bf16}.get(precision)
    return runs is not None and not runs(features)


def is_worth_trying(steps: Sequence[Step], objective: Objective, features: frozenset[str]) -> bool:
    """What is emulated gains no time, and is tried for its bytes alone."""
    return objective is Objective.SIZE or not is_emulated(precision_of(steps), features)


def notes(objective: Objective, features: frozenset[str], gpus: Sequence[Gpu] = ()) -> tuple[str, ...]:
    """What this processor lacks and which GPUs are beside it, a sentence each, before anything is tried."""
    emulated = [precision for precision in Precision if is_emulated(precision, features)]
    lacking = (*(_emulated(one, objective) for one in emulated), _note(Precision.INT8, features))
    return tuple(filter(None, (*lacking, *map(_of_gpu, gpus))))


def _of_gpu(gpu: Gpu) -> str:
    has = {"FP16": gpu.has_fp16, "INT8": gpu.has_int8, "BF16": gpu.has_bf16}
    runs = ", ".join(["FP32", *(name for name in has if has[name])])
    return f"{gpu}: it runs {runs} in hardware; precisions are timed on the processor, and only what is served may use it"


def findings(
    trials: Sequence[Trial], left: Sequence[Rung], limits: Limits, features: frozenset[str], stopped_because: str
) -> tuple[Finding, ...]:
    """One for each precision; `left` is what of the ladder was not tried."""
    original = Trial(Rung("", (), (), 0.0), _EXACT[1.0], 1.0, _EXACT[0.0], accepted=True)
    by: dict[Precision, list[Trial]] = {precision: [] for precision in Precision}
    for trial in (original, *trials):
        by[precision_of(trial.rung.steps)].append(trial)
    waiting = {precision_of(rung.steps) for rung in left}

    def why_not(precision: Precision) -> str:
        failed = [trial.reason for trial in by[precision]]
        if failed:
            return f"could not be made: {failed[0]}"
        if precision in waiting:
            return f"not tried yet: {stopped_because}"
        return _emulated(precision, limits.objective) if is_emulated(precision, features) else "no recipe makes it of such a model"

    return tuple(_finding(precision, by[precision], limits, features, why_not(precision)) for precision in Precision)


def _finding(precision: Precision, tried: Sequence[Trial], limits: Limits, features: frozenset[str], why_not: str) -> Finding:
    measured = [trial for trial in tried if trial.is_feasible]
    if not measured:
        return Finding(precision=precision, reason=why_not)
    best = max(measured, key=limits.merit)
    missed = tuple(limits.missed(best))
    return Finding(
        precision=precision,
        recipe=best.rung.name,
        speedup=best.speedup,
        size_ratio=best.size_ratio,
        loss=best.loss,
        qualifies=not missed,
        reason="; ".join(missed) or "within every limit",
        note=_note(precision, features),
    )


def _emulated(precision: Precision, objective: Objective) -> str:
    why = f"this processor emulates {precision}, for it lacks {_LACKING[precision]}"
    if objective is Objective.SIZE and precision is Precision.FP16:  # in a format that holds it, and runs it by casts
        return f"{why}: it saves bytes and no time"
    return f"{why}: not recommended, not tried"


def _note(precision: Precision, features: frozenset[str]) -> str:
    if precision is Precision.INT8 and not has_int8_dot(features):
        return f"this processor lacks {_LACKING[precision]}: INT8 gains less than its rule of thumb"
    if precision is Precision.FP16 and is_emulated(precision, features):
        return f"computed in FP32, for this processor lacks {_LACKING[precision]}"
    return ""


def _show(interval: Interval) -> str:
    return f"{interval.estimate:.2f} (95 % interval {interval.low:.2f} to {interval.high:.2f})"
