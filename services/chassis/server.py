"""A gRPC server with health, reflection, limits and an orderly stop."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import structlog
import uvloop
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from services.chassis import logs
from services.chassis.errors import ErrorTable
from services.chassis.health import Health
from services.chassis.interceptor import Interceptor
from services.chassis.metrics import CallMetrics, metrics_port
from services.chassis.settings import ServerSettings

if TYPE_CHECKING:
    from services.chassis.otlp import Tracer

log = structlog.get_logger("hone.server")

HEALTH_SERVICE = "grpc.health.v1.Health"


class Server:
    """One process's server. Add servicers to `grpc`, enter `running`, then tell readiness with `set_ready`.

    Health: "" says that the process lives; a service's full name says that it can do its work now.
    """

    def __init__(self, settings: ServerSettings, errors: ErrorTable) -> None:
        self._settings = settings
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._metrics = CallMetrics(self.registry)
        self._tracer = _tracer(settings)
        self._interceptor = Interceptor(
            errors,
            self._metrics,
            settings.default_deadline_s,
            tracer=self._tracer,
            log_every_call=settings.log_level == "debug",
        )
        self.grpc = grpc.aio.server(
            interceptors=[self._interceptor],
            options=_options(settings),
            maximum_concurrent_rpcs=settings.max_concurrent_calls,
        )
        self._health = Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        self._services: Sequence[str] = ()
        self.reflected: DescriptorPool | None = None
        self.before_drain: list[Callable[[], None]] = []  # ends streams of requests, which would go on for the whole grace
        self.port = 0

    async def set_ready(self, service: str, ready: bool) -> None:
        """Tells health watchers whether `service` (its full name) can do its work."""
        self._metrics.ready(service, ready)
        await self._health.set(service, ready)

    def is_ready(self, service: str) -> bool:
        """What health says of `service`."""
        return self._health.is_ready(service)

    async def _none_ready(self) -> None:
        for name in self._services:
            await self.set_ready(name, False)

    @property
    def client_interceptors(self) -> "Sequence[grpc.aio.ClientInterceptor]":
        """For the channels of calls made while answering one: they take its trace along."""
        if self._tracer is None:
            return ()
        from services.chassis.otlp import OutgoingCalls

        return (OutgoingCalls(),)

    @asynccontextmanager
    async def running(self, services: Sequence[str]) -> AsyncIterator[None]:
        """Listens for the length of the block; `services` start NOT_SERVING.

        At the end health turns first, then no call is taken any more and the running ones get the grace period.

        Raises:
            OSError: the port is taken.
        """
        self._services = services
        await self._none_ready()
        reflection.enable_server_reflection([*services, HEALTH_SERVICE, reflection.SERVICE_NAME], self.grpc, self.reflected)
        try:
            self._bind()
        except OSError:
            await self.grpc.stop(None)  # or gRPC complains when it is collected
            raise
        with metrics_port(self.registry, self._settings.metrics_host, self._settings.metrics_port) as metrics:
            await self.grpc.start()
            try:
                await self.set_ready("", True)
                log.info("listening", services=list(services), port=self.port, metrics_port=metrics)
                yield
            finally:
                await self._stop()

    def _bind(self) -> None:
        try:
            self.port = self.grpc.add_insecure_port(self._settings.address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._settings.address}: {error}") from error
        if not self._settings.is_loopback:
            log.warning("listening beyond this machine without credentials", address=self._settings.address)

    async def _stop(self) -> None:
        await self._none_ready()
        await self._health.stop()
        log.info("stopping", drain_s=self._settings.drain_s, grace_s=self._settings.grace_s)
        await asyncio.sleep(self._settings.drain_s)
        end = asyncio.get_running_loop().time() + self._settings.grace_s
        for stop in self.before_drain:
            stop()
        await self._interceptor.drain(self._settings.grace_s)
        await self.grpc.stop(max(0.1, end - asyncio.get_running_loop().time()))
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)


def _tracer(settings: ServerSettings) -> "Tracer | None":
    """None, and nothing of OpenTelemetry imported, unless an endpoint is set."""
    if not settings.otlp_endpoint:
        return None
    from services.chassis.otlp import Tracer

    return Tracer(settings.otlp_endpoint, service=settings.service_name, sampled_share=settings.trace_share)


def _options(settings: ServerSettings) -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", 0),  # on by default: a second server would silently share the port
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.enable_channelz", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


async def until_signalled() -> None:
    """Returns at SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await stop.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def run(main: Coroutine[Any, Any, None], settings: ServerSettings) -> None:
    """Runs a service's main coroutine to its end, on uvloop: gRPC wakes the loop once an event, which asyncio's own answers slower."""
    logs.configure(settings.log_level)
    uvloop.run(main)
