"""A store that counts what passes through it and shows it to Prometheus."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.cache.store import Entry, Stats, Store

LATENCY_BUCKETS_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)

COUNTERS = {
    "hits": "Keys asked for and found.",
    "misses": "Keys asked for and not found.",
    "puts": "Entries stored.",
    "deletes": "Keys removed one by one.",
    "evictions": "Live entries removed to stay under the limit.",
    "corrupt": "Entries, or whole databases, found unreadable.",
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
        registry.register(_StatsCollector(self))

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._timed("get"):
            values = await self._store.get(namespace, keys)
        misses = sum(value is None for value in values)
        self._misses += misses
        self._hits += len(values) - misses
        return values

    async def put(self, namespace: str, entries: Sequence[Entry]) -> list[bool]:
        with self._timed("put"):
            taken = await self._store.put(namespace, entries)
        self._puts += sum(taken)
        return taken

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        with self._timed("delete"):
            await self._store.delete(namespace, keys)
        self._deletes += len(keys)

    async def clear(self, namespace: str) -> int:
        with self._timed("clear"):
            return await self._store.clear(namespace)

    def stats(self) -> Stats:
        return replace(self._store.stats(), hits=self._hits, misses=self._misses, puts=self._puts, deletes=self._deletes)

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self._seconds.labels(operation).observe(time.monotonic() - begun)


class _StatsCollector(Collector):
    """Reads the store at scrape time, so that no second set of counters can drift from what GetStats tells."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterable[Metric]:
        stats = self._store.stats()
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"hone_cache_{name}", text, value=getattr(stats, name))
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"hone_cache_{name}", text, value=getattr(stats, name))
