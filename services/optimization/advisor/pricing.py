"""From what was measured of a recommendation to what its worth follows from."""

from services.optimization.advisor.economics import Capacity, Measured, Speedup
from services.optimization.advisor.serving.served import ServedAdvice
from services.optimization.evaluation.metrics import Metric
from services.optimization.evaluation.quality import loss_of
from services.optimization.report import Candidate, Interval, Quality

_SECONDS_PER_HOUR = 3600


def measured(served: ServedAdvice, candidate: Candidate, metric: Metric, job_seconds: float) -> Measured:
    """Capacities at the latency target where one was asked for and both keep to it, else as fast as answered, paired."""
    original, optimized = served.original_capacity, served.candidate_capacity
    if original is not None and optimized is not None:
        before = Capacity(rows_per_second=original.figures.rows_per_second)
        after: Capacity | Speedup = Capacity(rows_per_second=optimized.figures.rows_per_second)
    else:
        before, after = Capacity(rows_per_second=served.original.rows_per_second), Speedup(ratio=served.speedup)
    quality = next((found for found in candidate.qualities if found.metric is metric), None)
    return Measured(
        before=before,
        after=after,
        quality_change=_points(quality),
        job_instance_hours=job_seconds / _SECONDS_PER_HOUR,
    )


def _points(quality: Quality | None) -> Interval:
    """Of 0.01, better is positive; of a perplexity percent of the original's."""
    if quality is None:
        return Interval(estimate=0, low=0, high=0)
    lost = loss_of(quality)
    return Interval(estimate=-100 * lost.estimate, low=-100 * lost.high, high=-100 * lost.low)
