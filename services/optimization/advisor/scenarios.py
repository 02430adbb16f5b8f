"""What a user wants of a model: presets by scenario, explicit targets that win over them, and which of those cannot be met."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType

from pydantic import Field

from services.optimization.recipe import Objective
from services.repository.manifest import Frozen

LEAST_BITS = 4  # of a weight, by any quantization here


class Scenario(StrEnum):
    LATENCY = "LATENCY"
    THROUGHPUT = "THROUGHPUT"
    RESOURCE = "RESOURCE"


class Targets(Frozen):
    """Goals against the original on this machine; None is not asked for. What cannot be is told by `check`, all of it at once."""

    max_size_bytes: int | None = Field(None, description="bytes of the version's folder")
    max_memory_bytes: int | None = Field(None, description="bytes resident in a process that serves it")
    max_p99_ms: float | None = Field(None, description="milliseconds that 99 of 100 calls take at most")
    at_rows_per_second: float | None = Field(None, description="rate at which max_p99_ms holds; without it one call at a time")
    min_speedup: float | None = Field(None, description="ratio of the model's own throughput to the original's")
    min_served_speedup: float | None = Field(None, description="ratio of the throughput through the service, its settings included")
    max_loss: float | None = Field(None, description="of the metric, 0.01 is one point; a share of the original's for perplexity")


class Preset(Frozen):
    """A scenario's goals. To edit one, `model_copy` it."""

    summary: str
    objective: Objective
    targets: Targets


PRESETS: Mapping[Scenario, Preset] = MappingProxyType(
    {
        Scenario.LATENCY: Preset(
            summary="real-time dialogue: one answer as soon as can be",
            objective=Objective.LATENCY,
            targets=Targets(max_loss=0.02),
        ),
        Scenario.THROUGHPUT: Preset(
            summary="batch and offline work: as many rows per second as can be",
            objective=Objective.THROUGHPUT,
            targets=Targets(max_loss=0.05),
        ),
        Scenario.RESOURCE: Preset(
            summary="mobile and edge: as few bytes as can be",
            objective=Objective.SIZE,
            targets=Targets(max_loss=0.10),
        ),
    }
)


class Original(Frozen):
    """What is known of the original before anything is tried; 0 is not known, and what it would tell is not checked."""

    size_bytes: int = Field(gt=0)
    memory_bytes: int = Field(0, ge=0)
    empty_call_ms: float = Field(0.0, ge=0, description="p99 of a call that runs no model: what the service itself takes")
    bits_per_weight: int = Field(32, ge=1, le=64)

    @property
    def least_size_bytes(self) -> int:
        """What its weights take when all are quantized to the fewest bits: no scales, no tokenizer, so that nothing gets below."""
        return -(-self.size_bytes * min(LEAST_BITS, self.bits_per_weight) // self.bits_per_weight)


class Fault(Frozen):
    """Why a target is none; `nearest` is the nearest that is one, None where it is to be left out."""

    field: str
    reason: str
    nearest: float | None = None

    @property
    def advice(self) -> str:
        nearest = "leave it out" if self.nearest is None else f"nearest feasible: {self.nearest:.12g}"
        return f"{self.reason}; {nearest}"

    def __str__(self) -> str:
        return f"{self.field}: {self.advice}"


def resolve(preset: Preset, targets: Targets) -> Targets:
    """The preset's, and over them what is explicit."""
    return preset.targets.model_copy(update=targets.model_dump(exclude_none=True))


def check(targets: Targets, objective: Objective, original: Original, *, has_training: bool = False) -> tuple[Fault, ...]:
    """All contradictory or impossible goals; `targets` are resolved. With training examples a smaller student may go below any size."""
    least_bytes = 1 if has_training else original.least_size_bytes
    return (
        *_size_faults("max_size_bytes", targets.max_size_bytes, original.size_bytes, least_bytes),
        *_size_faults("max_memory_bytes", targets.max_memory_bytes, original.memory_bytes, least_bytes),
        *_latency_faults(targets, original.empty_call_ms),
        *_speedup_faults(targets, objective),
        *_loss_faults(targets.max_loss),
    )


def impossible(targets: Targets, scenario: Scenario) -> tuple[Fault, ...]:
    """As `check`, of what no original could meet; sizes hang on the original. `targets` are resolved."""
    of_no_size = targets.model_copy(update={"max_size_bytes": None, "max_memory_bytes": None})
    return check(of_no_size, PRESETS[scenario].objective, Original(size_bytes=1))


def _size_faults(field: str, asked: int | None, of_original: int, least: int) -> Iterator[Fault]:
    if asked is None:
        return
    if asked <= 0:
        yield Fault(field=field, reason=f"{asked} is no size", nearest=least)
    elif asked < least:
        told = f"{asked:,} is below the {least:,} bytes that the weights take at {LEAST_BITS} bits each"
        yield Fault(field=field, reason=f"{told}: only a smaller student gets there, for which training examples are needed", nearest=least)
    elif 0 < of_original < asked:
        yield Fault(field=field, reason=f"the original's {of_original:,} bytes meet {asked:,}: it is no target", nearest=of_original)


def _latency_faults(targets: Targets, empty_call_ms: float) -> Iterator[Fault]:
    asked, rate = targets.max_p99_ms, targets.at_rows_per_second
    if asked is not None and asked < empty_call_ms:
        reason = f"{asked:g} ms is below the {empty_call_ms:g} ms that a call without a model takes"
        yield Fault(field="max_p99_ms", reason=reason, nearest=empty_call_ms)
    elif asked is not None and asked <= 0:
        yield Fault(field="max_p99_ms", reason=f"{asked:g} ms is no time")
    if rate is not None and rate <= 0:
        yield Fault(field="at_rows_per_second", reason=f"{rate:g} is no rate")
    elif rate is not None and asked is None:
        yield Fault(field="at_rows_per_second", reason="a rate is a target together with max_p99_ms, which is not told")


def _speedup_faults(targets: Targets, objective: Objective) -> Iterator[Fault]:
    for field in ("min_speedup", "min_served_speedup"):
        asked: float | None = getattr(targets, field)
        if asked is None:
            continue
        if asked < 1 and objective is not Objective.SIZE:
            yield Fault(field=field, reason=f"{asked:g} is slower than the original, no optimization of {objective.lower()}", nearest=1)
        elif asked <= 0:
            yield Fault(field=field, reason=f"{asked:g} is no ratio")


def _loss_faults(asked: float | None) -> Iterator[Fault]:
    if asked is not None and asked < 0:
        yield Fault(field="max_loss", reason=f"{asked:g}: a gain cannot be asked for", nearest=0)
    elif asked is not None and asked >= 1:
        most = max(preset.targets.max_loss or 0 for preset in PRESETS.values())
        yield Fault(field="max_loss", reason=f"{asked:g} holds nothing: 0.01 is one point", nearest=most)
