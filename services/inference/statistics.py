"""What a served version did since it was loaded."""

import time
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


@dataclass(slots=True)
class Sum:
    """How often something was done, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class CallTimes:
    """Where the time of calls went, as the Open Inference Protocol's statistics extension counts it: each call once, whatever its rows.

    `success` and `queue` count calls answered from memory alone; `tokenization`, `compute` and `output` do not.
    """

    success: Sum = field(default_factory=Sum)
    fail: Sum = field(default_factory=Sum)
    queue: Sum = field(default_factory=Sum)
    tokenization: Sum = field(default_factory=Sum)
    compute: Sum = field(default_factory=Sum)
    output: Sum = field(default_factory=Sum)
    cache_hit: Sum = field(default_factory=Sum)
    cache_miss: Sum = field(default_factory=Sum)
    batches: dict[int, Sum] = field(default_factory=dict)  # by their rows
    last_call_ms: int = 0  # since the epoch; 0 before the first

    def answered(self, total_ns: int, queue_ns: int, tokenization_ns: int, compute_ns: int, output_ns: int, *, remembered: bool) -> None:
        """A call that succeeded; `remembered` where no row of it was computed."""
        self.last_call_ms = time.time_ns() // 1_000_000
        self.success.add(total_ns)
        self.queue.add(queue_ns)
        if not remembered:
            self.tokenization.add(tokenization_ns)
            self.compute.add(compute_ns)
            self.output.add(output_ns)

    def failed(self, total_ns: int) -> None:
        self.last_call_ms = time.time_ns() // 1_000_000
        self.fail.add(total_ns)

    def looked_up(self, ns: int, *, knew_all: bool) -> None:
        """A call's rows were looked up in memory."""
        (self.cache_hit if knew_all else self.cache_miss).add(ns)

    def ran(self, rows: int, ns: int) -> None:
        """A batch has run."""
        self.batches.setdefault(rows, Sum()).add(ns)
