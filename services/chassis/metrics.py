"""Prometheus metrics of a server and the port they are read from."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from types import TracebackType
from typing import Self

import grpc
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from services.chassis.histogram import Histogram

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_METHOD = ("grpc_service", "grpc_method")


class Outcome:
    """One call for the length of a `with` block: when it began, on the monotonic clock, and how it ended.

    A class: contextlib's generators cost several times as much, at every call.
    """

    __slots__ = ("_counts", "begun", "code")

    def __init__(self, counts: "_MethodCounts") -> None:
        self._counts = counts
        self.begun = time.monotonic()
        self.code = grpc.StatusCode.OK

    def __enter__(self) -> Self:
        self._counts.started += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.gone()
        self._counts.seconds.observe(time.monotonic() - self.begun)
        self._counts.ended[self.code] += 1

    def gone(self) -> None:
        """A call that neither answers nor refuses was cancelled by its caller."""
        if self.code is grpc.StatusCode.OK:
            self.code = grpc.StatusCode.CANCELLED


class _MethodCounts:
    def __init__(self, method: str) -> None:
        service, _, name = method.lstrip("/").partition("/")
        self.labels: tuple[str, ...] = (service, name)
        self.started = 0
        self.ended: Counter[grpc.StatusCode] = Counter()
        self.seconds = Histogram(LATENCY_BUCKETS_S)


class CallMetrics(Collector):
    """Calls by method and code, and their latency, under the names that gRPC dashboards expect.

    Counted on the event loop's thread and read when Prometheus asks: prometheus_client's own counters take a lock each, at every call.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._methods: dict[str, _MethodCounts] = {}  # only methods that exist come here, so there are few
        self._ready: dict[str, bool] = {}
        registry.register(self)

    def call(self, method: str) -> Outcome:
        """Counts and times one call; `method` is `/package.Service/Method`."""
        counts = self._methods.get(method)
        if counts is None:
            counts = self._methods[method] = _MethodCounts(method)
        return Outcome(counts)

    def ready(self, service: str, ready: bool) -> None:
        """What health tells of `service`; "", the process itself, is Prometheus' own `up`."""
        if service:
            self._ready[service] = ready

    def collect(self) -> Iterable[Metric]:
        """Called in the metrics port's thread."""
        methods = list(self._methods.values())
        started = CounterMetricFamily("grpc_server_started", "Calls begun.", labels=_METHOD)
        handled = CounterMetricFamily("grpc_server_handled", "Calls ended, by status code.", labels=(*_METHOD, "grpc_code"))
        running = 0
        for counts in methods:
            ended = dict(counts.ended)
            running += max(0, counts.started - sum(ended.values()))
            started.add_metric(counts.labels, counts.started)
            for code, calls in ended.items():
                handled.add_metric((*counts.labels, code.name), calls)
        taken = {counts.labels: counts.seconds for counts in methods}
        seconds = histograms("grpc_server_handling_seconds", "Time from the call's start to its end.", _METHOD, taken)
        ready = GaugeMetricFamily("hone_ready", "1 where a service can do its work now.", labels=("grpc_service",))
        for service, value in list(self._ready.items()):
            ready.add_metric((service,), float(value))
        return started, handled, seconds, GaugeMetricFamily("grpc_server_in_flight", "Calls begun and not ended.", value=running), ready


def histograms(name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], Histogram]) -> HistogramMetricFamily:
    """Histograms by the values of their labels. Prometheus wants the counts summed up from the least bound on."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for key, histogram in values.items():
        bounds = [*map(str, map(float, histogram.bounds)), "+Inf"]
        family.add_metric(key, list(zip(bounds, accumulate(list(histogram.counts)), strict=True)), histogram.sum)
    return family


@contextmanager
def metrics_port(registry: CollectorRegistry, host: str, port: int | None) -> Iterator[int | None]:
    """Serves `registry` over HTTP until the end of the block; yields the bound port, or None when switched off."""
    if port is None:
        yield None
        return
    server, thread = start_http_server(port, addr=host, registry=registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
