"""What served versions do, as Prometheus metrics.

Everything is counted once, where it happens, and read when Prometheus asks: a call pays for an addition, what GetStatistics
tells cannot drift from the metrics, and a version's series go with it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.chassis.histogram import Histogram
from services.chassis.metrics import histograms
from services.inference.batching import Reason
from services.inference.instance import Loss
from services.inference.statistics import Statistics
from services.inference.variants import Variants

_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LOAD_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.33, 2, 4)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)

_VERSION = ("model", "version")
_VARIANT = (*_VERSION, "variant")

# Attribute of VersionMetrics -> metric.
_HISTOGRAMS = {
    "tokenization_seconds": ("hone_tokenization_seconds", "Tokenization of a call's texts."),
    "lookup_seconds": ("hone_lookup_seconds", "Look-up of a call's rows among the remembered answers."),
    "queue_seconds": ("hone_queue_seconds", "Wait of a row in the queue."),
    "compute_seconds": ("hone_compute_seconds", "Run of a batch in the backend."),
    "batch_rows": ("hone_batch_rows", "Rows of a batch."),
    "batch_tokens": ("hone_batch_padded_tokens", "Tokens of a batch, padding included."),
    "predicted_ratio": ("hone_predicted_over_actual", "Predicted time of a batch over its actual time."),
}
# Attribute of Statistics -> metric.
_COUNTERS = {
    "real_tokens": ("hone_real_tokens", "Tokens computed, padding not counted."),
    "padded_tokens": ("hone_padded_tokens", "Tokens computed, padding included."),
    "cached_rows": ("hone_cached_rows", "Rows answered from memory."),
    "dropped_rows": ("hone_dropped_rows", "Rows whose caller had gone or whose deadline had passed before they ran."),
}
# Attribute of what is watched -> metric.
_GAUGES = {
    "queued_rows": ("hone_queued_rows", "Rows waiting."),
    "queued_tokens": ("hone_queued_tokens", "Tokens waiting."),
    "live_instances": ("hone_live_instances", "Instances that run batches now."),
}


class Watched(Protocol):
    """A version that serves."""

    statistics: Statistics
    variants: Variants

    @property
    def queued_rows(self) -> int: ...

    @property
    def queued_tokens(self) -> int: ...

    @property
    def live_instances(self) -> int: ...


@dataclass(slots=True)
class Count:
    """How often something happened."""

    value: int = 0

    def inc(self) -> None:
        self.value += 1


@dataclass(slots=True)
class VersionMetrics:
    """What is measured of one version beside its statistics. `forget` ends its series."""

    forget: Callable[[], None]
    tokenization_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    lookup_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    compute_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    batch_rows: Histogram = field(default_factory=lambda: Histogram(_ROWS))
    batch_tokens: Histogram = field(default_factory=lambda: Histogram(_TOKENS))
    predicted_ratio: Histogram = field(default_factory=lambda: Histogram(_RATIOS))
    closed: Mapping[Reason, Count] = field(default_factory=lambda: {reason: Count() for reason in Reason})
    lost: Mapping[Loss, Count] = field(default_factory=lambda: {loss: Count() for loss in Loss})


class Metrics:
    """The process's metrics of serving, by model, version and variant: names that the repository knows, never a caller's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._versions: dict[tuple[str, str], tuple[Watched, VersionMetrics]] = {}
        registry.register(_Versions(self._versions))
        # Not by model: a series for each model that was ever loaded would stay for good.
        self._loads = prometheus_client.Counter("hone_loads_total", "Loads of versions, by how they ended.", ["result"], registry=registry)
        self._load_seconds = prometheus_client.Histogram(
            "hone_load_seconds", "Load of a version, warm-up included.", buckets=_LOAD_SECONDS, registry=registry
        )
        self.models_bytes = prometheus_client.Gauge("hone_models_bytes", "Memory that versions hold.", registry=registry)
        self.models_limit_bytes = prometheus_client.Gauge("hone_models_limit_bytes", "Memory that they may; 0: any.", registry=registry)
        self.evictions = prometheus_client.Counter("hone_evictions_total", "Versions that made room for others.", registry=registry)
        self._lookups_off = prometheus_client.Gauge(
            "hone_lookups_off", "Versions whose answers are not looked up: it would cost more than it saves.", ["layer"], registry=registry
        )
        for result in ("ready", "failed"):
            self._loads.labels(result)  # from the start, or the first failure would be no increase

    def of(self, model: str, version: int, watched: Watched) -> VersionMetrics:
        """A version's metrics, until they are forgotten."""
        key = (model, str(version))

        def forget() -> None:
            if self._versions.get(key) == entry:  # another may have been loaded in its place
                del self._versions[key]

        entry = (watched, VersionMetrics(forget))
        self._versions[key] = entry
        return entry[1]

    def lookups_switched(self, layer: str, on: bool) -> None:
        """One more or one fewer version whose answers are looked up in the layer."""
        self._lookups_off.labels(layer).inc(-1 if on else 1)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """The block loads a version; it fails when it raises."""
        begun = time.monotonic()
        result = "failed"
        try:
            yield
            result = "ready"
        finally:
            self._loads.labels(result).inc()
            self._load_seconds.observe(time.monotonic() - begun)


class _Versions(Collector):
    """Reads what versions have counted, at scrape time and on the metrics server's thread."""

    def __init__(self, versions: Mapping[tuple[str, str], tuple[Watched, VersionMetrics]]) -> None:
        self._versions = versions

    def collect(self) -> Iterable[Metric]:
        versions = dict(self._versions)
        for attribute, (name, text) in _HISTOGRAMS.items():
            yield histograms(name, text, _VERSION, {key: getattr(metrics, attribute) for key, (_, metrics) in versions.items()})
        for attribute, (name, text) in _COUNTERS.items():
            yield _counters(name, text, _VERSION, {key: getattr(watched.statistics, attribute) for key, (watched, _) in versions.items()})
        for attribute, (name, text) in _GAUGES.items():
            yield _gauges(name, text, {key: getattr(watched, attribute) for key, (watched, _) in versions.items()})
        yield _gauges("hone_running_requests", "Calls begun and not ended.", {key: w.variants.running for key, (w, _) in versions.items()})
        yield _counters("hone_batches", "Batches, by why they were closed.", (*_VERSION, "reason"), _parts(versions, "closed"))
        yield _counters("hone_instances_lost", "Instances given up, by why.", (*_VERSION, "reason"), _parts(versions, "lost"))
        yield from _variants({key: watched.variants for key, (watched, _) in versions.items()})


def _parts(versions: Mapping[tuple[str, str], tuple[Watched, VersionMetrics]], attribute: str) -> dict[tuple[str, ...], int]:
    """Counts that a version keeps by reason."""
    return {
        (*key, str(reason)): count.value for key, (_, metrics) in versions.items() for reason, count in getattr(metrics, attribute).items()
    }


def _variants(versions: Mapping[tuple[str, str], Variants]) -> Iterator[Metric]:
    found = {(*key, name): counts for key, variants in versions.items() for name, counts in dict(variants.counts).items()}
    calls: dict[tuple[str, ...], int] = {
        (*key, str(ending)): count for key, counts in found.items() for ending, count in counts.calls.items()
    }
    yield _counters("hone_requests", "Calls ended, by how.", (*_VARIANT, "ending"), calls)
    yield _counters("hone_rows", "Rows of answered calls.", _VARIANT, {key: counts.rows for key, counts in found.items()})
    yield histograms("hone_request_seconds", "Answered calls, from texts to answers.", _VARIANT, {k: c.seconds for k, c in found.items()})


def _counters(name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _gauges(name: str, text: str, values: Mapping[tuple[str, ...], int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=_VERSION)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
