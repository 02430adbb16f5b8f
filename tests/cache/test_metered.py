"""What Prometheus reads of a store."""

from prometheus_client import CollectorRegistry

from services.cache.memory import MemoryStore
from services.cache.metered import LEASE_COUNTERS, MeteredStore, StatsCollector
from services.cache.store import Entry, Namespace, Stats


async def test_prometheus_reads_the_numbers_that_stats_tell() -> None:
    registry = CollectorRegistry()
    store = MeteredStore(MemoryStore(5_000, lambda: 0.0), registry)
    await store.put("n", [Entry(b"%d" % number, b"v" * 1_000, 1.0) for number in range(4)])  # room for three
    await store.get("n", [b"3", b"unknown"])
    await store.delete("n", [b"3"])
    await store.configure("n", 5)
    await store.clear("n")
    assert await store.describe("n") == Namespace(1, 5)
    stats = store.stats()
    assert (stats.hits, stats.misses, stats.puts, stats.deletes, stats.evictions, stats.entries) == (1, 1, 4, 1, 1, 0)
    for name in ("hits", "misses", "puts", "deletes", "evictions", "corrupt"):
        assert registry.get_sample_value(f"hone_cache_{name}_total") == getattr(stats, name)
    for name in ("entries", "bytes"):
        assert registry.get_sample_value(f"hone_cache_{name}") == getattr(stats, name)
    for operation in ("get", "put", "delete", "clear", "configure"):
        assert registry.get_sample_value("hone_cache_operation_seconds_count", {"operation": operation}) == 1


def test_prometheus_reads_what_leases_did() -> None:
    registry = CollectorRegistry()
    registry.register(StatsCollector(lambda: Stats(leases=3, shared=2, leases_lost=1), LEASE_COUNTERS, {}))
    found = [registry.get_sample_value(f"hone_cache_{name}_total") for name in ("leases", "shared", "leases_lost")]
    assert found == [3, 2, 1]
