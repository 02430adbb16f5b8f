"""What served versions do, as Prometheus metrics."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.inference.batching import Reason

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.33, 2, 4)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """The process's batch metrics, by model and version."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["model", "version"]
        self._queue_seconds = Histogram("hone_queue_seconds", "Wait of a row in the queue.", labels, buckets=_SECONDS, registry=registry)
        self._compute_seconds = Histogram(
            "hone_compute_seconds", "Run of a batch in the backend.", labels, buckets=_SECONDS, registry=registry
        )
        self._batch_rows = Histogram("hone_batch_rows", "Rows of a batch.", labels, buckets=_ROWS, registry=registry)
        self._batch_tokens = Histogram(
            "hone_batch_padded_tokens", "Tokens of a batch, padding included.", labels, buckets=_TOKENS, registry=registry
        )
        self._real_tokens = Counter("hone_real_tokens_total", "Tokens computed, padding not counted.", labels, registry=registry)
        self._padded_tokens = Counter("hone_padded_tokens_total", "Tokens computed, padding included.", labels, registry=registry)
        self._closed = Counter("hone_batches_total", "Batches, by why they were closed.", [*labels, "reason"], registry=registry)
        self._queued_rows = Gauge("hone_queued_rows", "Rows waiting.", labels, registry=registry)
        self._cached_rows = Counter("hone_cached_rows_total", "Rows answered from memory.", labels, registry=registry)
        self._predicted_ratio = Histogram(
            "hone_predicted_over_actual", "Predicted time of a batch over its actual time.", labels, buckets=_RATIOS, registry=registry
        )

    def of(self, model: str, version: int) -> "VersionMetrics":
        """One version's metrics, looked up once: by label at every batch they would cost more than the batcher."""
        labels = (model, str(version))
        return VersionMetrics(
            queue_seconds=self._queue_seconds.labels(*labels),
            compute_seconds=self._compute_seconds.labels(*labels),
            batch_rows=self._batch_rows.labels(*labels),
            batch_tokens=self._batch_tokens.labels(*labels),
            real_tokens=self._real_tokens.labels(*labels),
            padded_tokens=self._padded_tokens.labels(*labels),
            closed={reason: self._closed.labels(*labels, reason) for reason in Reason},
            queued_rows=self._queued_rows.labels(*labels),
            cached_rows=self._cached_rows.labels(*labels),
            predicted_ratio=self._predicted_ratio.labels(*labels),
        )


@dataclass(frozen=True, slots=True)
class VersionMetrics:
    queue_seconds: Histogram
    compute_seconds: Histogram
    batch_rows: Histogram
    batch_tokens: Histogram
    real_tokens: Counter
    padded_tokens: Counter
    closed: Mapping[Reason, Counter]
    queued_rows: Gauge
    cached_rows: Counter
    predicted_ratio: Histogram
