"""A store that counts what passes through it and shows it to Prometheus."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.cache.store import Entry, Namespace, Stats, Store

LATENCY_BUCKETS_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)

COUNTERS = {
    "hits": "Keys asked for and found.",
    "misses": "Keys asked for and not found.",
    "puts": "Entries stored.",
    "deletes": "Keys removed one by one.",
    "evictions": "Live entries removed to stay under the limit.",
    "corrupt": "Entries, or whole databases, found unreadable.",
}
LEASE_COUNTERS = {
    "leases": "Leases given.",
    "shared": "Misses answered by waiting for what a lease's holder stored.",
    "leases_lost": "Puts refused because their lease had ended or their namespace was cleared meanwhile.",
}
GAUGES = {"entries": "Entries held.", "bytes": "Bytes held."}


class MeteredStore:
    """Counts keys, not calls: a batch of 32 with two unknown keys is 30 hits and 2 misses."""

    def __init__(self, store: Store, registry: CollectorRegistry) -> None:
        self._store = store
        self._hits = self._misses = self._puts = self._deletes = 0
        self._seconds = Histogram(
            "hone_cache_operation_seconds",
            "Time of one batch in the store, its wait included.",
            ["operation"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        registry.register(StatsCollector(self.stats, COUNTERS, GAUGES))

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._timed("get"):
            values = await self._store.get(namespace, keys)
        misses = sum(value is None for value in values)
        self._misses += misses
        self._hits += len(values) - misses
        return values

    async def lives(self, namespace: str, keys: Sequence[bytes]) -> list[float]:
        return await self._store.lives(namespace, keys)

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        with self._timed("put"):
            taken = await self._store.put(namespace, entries, epoch=epoch)
        self._puts += sum(taken)
        return taken

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        with self._timed("delete"):
            await self._store.delete(namespace, keys)
        self._deletes += len(keys)

    async def clear(self, namespace: str) -> int:
        with self._timed("clear"):
            return await self._store.clear(namespace)

    async def describe(self, namespace: str) -> Namespace:
        return await self._store.describe(namespace)

    async def configure(self, namespace: str, ttl_s: float | None) -> None:
        with self._timed("configure"):
            await self._store.configure(namespace, ttl_s)

    def stats(self) -> Stats:
        return replace(self._store.stats(), hits=self._hits, misses=self._misses, puts=self._puts, deletes=self._deletes)

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self._seconds.labels(operation).observe(time.monotonic() - begun)


class StatsCollector(Collector):
    """Reads stats at scrape time, so that no second set of counters can drift from what GetStats tells."""

    def __init__(self, stats: Callable[[], Stats], counters: Mapping[str, str], gauges: Mapping[str, str]) -> None:
        """`counters` and `gauges` are fields of `Stats` and what they mean."""
        self._stats = stats
        self._counters = counters
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        for name, text in self._counters.items():
            yield CounterMetricFamily(f"hone_cache_{name}", text, value=getattr(stats, name))
        for name, text in self._gauges.items():
            yield GaugeMetricFamily(f"hone_cache_{name}", text, value=getattr(stats, name))
