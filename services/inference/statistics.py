"""What a served version did since it was loaded."""

from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass(slots=True)
class Statistics:
    """Counters of one version; nanoseconds are sums over rows (queue) or batches (compute)."""

    loaded: datetime = field(default_factory=lambda: datetime.now(UTC))
    requests: int = 0
    rows: int = 0
    failed_requests: int = 0
    refused_requests: int = 0
    dropped_rows: int = 0
    cached_rows: int = 0
    batches: int = 0
    batch_rows: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0
    queue_ns: int = 0
    tokenization_ns: int = 0
    compute_ns: int = 0
