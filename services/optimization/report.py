"""What a job found: the contract's Report and its parts, field by field."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field

from services.optimization.evaluation.metrics import Metric
from services.optimization.recipe import Step
from services.repository.manifest import Frozen


class Verdict(StrEnum):
    ACCEPT = "ACCEPT"
    REJECT_ACCURACY = "REJECT_ACCURACY"
    REJECT_NO_GAIN = "REJECT_NO_GAIN"
    INCONCLUSIVE = "INCONCLUSIVE"
    INFEASIBLE = "INFEASIBLE"


class Interval(Frozen):
    """An estimate between the bounds of its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


class Quality(Frozen):
    """One metric of a candidate beside the original's; `difference` is candidate minus original, paired by example.

    Of a perplexity it is a share of the original's.
    """

    metric: Metric
    original: Interval
    candidate: Interval
    difference: Interval
    p_value: float
    test: str
    examples: int


class WorkloadResult(Frozen):
    """Latency of one batch of `batch_rows` rows of `tokens` tokens (0: not a text); rows_per_second follows from the median."""

    batch_rows: int = Field(ge=1)
    tokens: int = Field(ge=0)
    p50_ms: float
    p90_ms: float
    p99_ms: float
    rows_per_second: float
    samples: int = Field(ge=1)


class Measurement(Frozen):
    size_bytes: int = Field(ge=0)
    load_seconds: float = 0.0
    workloads: tuple[WorkloadResult, ...] = ()
    memory_bytes: int = 0


class Candidate(Frozen):
    """One recipe's outcome. `measurement` and the intervals are absent when infeasible."""

    name: str
    steps: tuple[Step, ...]
    verdict: Verdict
    reason: str
    measurement: Measurement | None = None
    fidelity: Interval | None = None
    min_fidelity: float = 0.0
    speedup: Interval | None = None
    size_ratio: float = 0.0
    notes: Mapping[str, Any] = {}
    optimization_seconds: float = 0.0
    qualities: tuple[Quality, ...] = ()


class Report(Frozen):
    original: Measurement
    candidates: tuple[Candidate, ...] = ()
    chosen: str = ""
    environment: Mapping[str, Any] = {}
    metric: Metric = Metric.FIDELITY
    data: Mapping[str, Any] = {}
    advice: Mapping[str, Any] = {}  # advisor.advice.Advice as plain JSON, where the job had a goal
