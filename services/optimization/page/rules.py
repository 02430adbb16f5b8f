"""Published rules of thumb for a precision, beside what was measured, and what this machine has to do with the difference."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.optimization.environment import has_bf16, has_int8_dot
from services.optimization.evaluation.metrics import Metric
from services.optimization.page import wording
from services.optimization.recipe import Step
from services.optimization.report import Candidate


class Precision(StrEnum):
    FP16 = "FP16"
    BF16 = "BF16"
    INT8 = "INT8"
    INT4 = "INT4"


@dataclass(frozen=True)
class Rule:
    """Of the original: share of its bytes, multiple of its speed, share of quality lost."""

    size: float
    speed: float
    drop: float


_HALF = Rule(0.5, 2.0, 0.01)
RULES = {Precision.FP16: _HALF, Precision.BF16: _HALF, Precision.INT8: Rule(0.25, 4.0, 0.02), Precision.INT4: Rule(0.125, 8.0, 0.05)}
# Within a tenth of the rule, a figure needs no explanation.
_TOLERANCE = 0.1
_BITS = {4: Precision.INT4, 8: Precision.INT8}
_DTYPES = {"bfloat16": Precision.BF16, "float16": Precision.FP16}


@dataclass(frozen=True)
class Comparison:
    """One candidate beside its rule. `drop` is a share of quality lost, None where it was not measured."""

    name: str
    precision: Precision
    rule: Rule
    size: float | None
    speed: float | None
    drop: str
    reasons: tuple[str, ...]


def precision_of(step: Step) -> Precision | None:
    """What a step quantizes to, by its parameters or its name; None for a step that does not."""
    bits, dtype = step.parameters.get("bits"), step.parameters.get("dtype")
    if "int4" in step.technique:  # whose bits may be set to 8
        return _BITS.get(bits, Precision.INT4) if isinstance(bits, int) else Precision.INT4
    if "int8" in step.technique or step.technique == "qat":
        return Precision.INT8
    for word, precision in (("bf16", Precision.BF16), ("fp16", Precision.FP16)):
        if word in step.technique:
            return precision
    return _DTYPES.get(dtype) if isinstance(dtype, str) else None


def _last(steps: Sequence[Step]) -> tuple[Step, Precision] | None:
    found = [(step, precision) for step in steps if (precision := precision_of(step)) is not None]
    return found[-1] if found else None


def _step_notes(candidate: Candidate, step: Step) -> Mapping[str, Any]:
    steps = candidate.notes.get("steps")
    told = [notes for notes in steps if isinstance(notes, Mapping)] if isinstance(steps, Sequence) and not isinstance(steps, str) else []
    return next((notes for notes in reversed(told) if notes.get("technique") == step.technique), {})


def _hardware(precision: Precision, features: frozenset[str]) -> str:
    """What the processor has to say to a speed below the rule."""
    match precision:
        case Precision.INT8 if not has_int8_dot(features):
            return "This processor has no 8-bit dot product (VNNI, AMX): 8-bit products are widened before they are summed."
        case Precision.INT8:
            return (
                "This processor has 8-bit dot products, which speed up the weight products alone: attention, normalization and "
                "the scaling of activations still run in FP32."
            )
        case Precision.BF16 if not has_bf16(features):
            return "This processor does not compute in bfloat16 (AVX512-BF16, AMX): it is emulated with FP32 arithmetic."
        case Precision.BF16:
            return "This processor computes bfloat16 products in hardware; what lies between the products gains only by the bytes it moves."
        case Precision.FP16 if "avx512_fp16" not in features:
            return "This processor has no FP16 arithmetic: weights are widened to FP32 before every product, so FP16 saves bytes alone."
        case Precision.FP16:
            return "This processor has FP16 arithmetic, but CPU libraries have few kernels for it; the rule is that of graphics processors."
    return "Weight-only INT4 reads fewer bytes but computes in wider types: it gains speed only where memory, not arithmetic, is the limit."


def _size_reasons(step: Step, candidate: Candidate) -> Iterator[str]:
    excluded = _step_notes(candidate, step).get("excluded")
    if isinstance(excluded, Sequence) and not isinstance(excluded, str) and excluded:
        layers = "1 layer" if len(excluded) == 1 else f"{len(excluded)} layers"
        yield f"Larger than the rule: {layers} stayed in high precision, to keep the quality."
    else:
        yield "Larger than the rule: scales, tables, tokenizer and what is not a weight matrix keep their bytes."


def _reasons(step: Step, precision: Precision, candidate: Candidate, environment: Mapping[str, Any]) -> Iterator[str]:
    rule = RULES[precision]
    if len(candidate.steps) > 1:
        chain = " → ".join(step.technique for step in candidate.steps)
        yield f"Measured is the whole chain {chain}; the rule is for the precision alone."
    if candidate.size_ratio and 1 / candidate.size_ratio > rule.size * (1 + _TOLERANCE):
        yield from _size_reasons(step, candidate)
    features = environment.get("cpu_features")
    if candidate.speedup is not None and candidate.speedup.estimate < rule.speed * (1 - _TOLERANCE) and isinstance(features, list | tuple):
        yield _hardware(precision, frozenset(map(str, features)))


def _drop(candidate: Candidate, metric: Metric) -> str:
    quality = wording.quality_of(candidate, metric)
    if quality is not None and metric is Metric.PERPLEXITY:
        return f"{wording.signed(100 * wording.loss(quality), 2)} % perplexity"
    if quality is not None:
        return f"{wording.signed(100 * wording.loss(quality), 2)} points {wording.METRICS[metric]}"
    return "" if candidate.fidelity is None else f"{wording.number(100 * (1 - candidate.fidelity.estimate))} % (1 − fidelity)"


def compare(candidate: Candidate, metric: Metric, environment: Mapping[str, Any]) -> Comparison | None:
    """None for a candidate that was not measured or that no step of quantizes."""
    found = _last(candidate.steps)
    if found is None or candidate.measurement is None:
        return None
    step, precision = found
    return Comparison(
        name=candidate.name,
        precision=precision,
        rule=RULES[precision],
        size=1 / candidate.size_ratio if candidate.size_ratio else None,
        speed=candidate.speedup.estimate if candidate.speedup else None,
        drop=_drop(candidate, metric),
        reasons=tuple(_reasons(step, precision, candidate, environment)),
    )
