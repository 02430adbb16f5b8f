"""Prometheus metrics of a server and the port they are read from."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(slots=True)
class Outcome:
    """When a call began and how it ended; `begun` is on the monotonic clock."""

    begun: float
    code: grpc.StatusCode = grpc.StatusCode.OK

    def gone(self) -> None:
        """A call that neither answers nor refuses was cancelled by its caller."""
        if self.code is grpc.StatusCode.OK:
            self.code = grpc.StatusCode.CANCELLED


class CallMetrics:
    """Calls by method and code, and their latency, under the names that gRPC dashboards expect."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._started = Counter("grpc_server_started_total", "Calls begun.", ["grpc_service", "grpc_method"], registry=registry)
        self._handled = Counter(
            "grpc_server_handled_total", "Calls ended, by status code.", ["grpc_service", "grpc_method", "grpc_code"], registry=registry
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from the call's start to its end.",
            ["grpc_service", "grpc_method"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._running = Gauge("grpc_server_in_flight", "Calls begun and not ended.", registry=registry)
        self._ready = Gauge("hone_ready", "1 where a service can do its work now.", ["grpc_service"], registry=registry)
        # Only methods that exist come here, so there are few; looked up by label at each call they cost more than timing it.
        self._of = cache(self._children)
        self._ended = cache(self._counter)

    @contextmanager
    def call(self, method: str) -> Iterator[Outcome]:
        """Times one call; `method` is `/package.Service/Method`."""
        service, _, name = method.lstrip("/").partition("/")
        started, seconds = self._of(service, name)
        started.inc()
        self._running.inc()
        outcome = Outcome(time.monotonic())
        try:
            yield outcome
        except BaseException:
            outcome.gone()
            raise
        finally:
            self._running.dec()
            seconds.observe(time.monotonic() - outcome.begun)
            self._ended(service, name, outcome.code).inc()

    def ready(self, service: str, ready: bool) -> None:
        """What health tells of `service`; "", the process itself, is Prometheus' own `up`."""
        if service:
            self._ready.labels(service).set(ready)

    def _children(self, service: str, name: str) -> tuple[Counter, Histogram]:
        return self._started.labels(service, name), self._seconds.labels(service, name)

    def _counter(self, service: str, name: str, code: grpc.StatusCode) -> Counter:
        return self._handled.labels(service, name, code.name)


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
