"""OpenTelemetry spans, sent to a collector over OTLP. Imported only where an endpoint is set."""

import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.chassis import tracing
from services.chassis.tracing import Attributes

QUEUE_SPANS = 4096  # past it the oldest are lost: a collector that is down must not cost memory
EXPORT_S = 5.0
FLUSH_S = 2.0  # at the end; what a collector has not taken by then is lost
_W3C = TraceContextTextMapPropagator()
_CARRIED = ("traceparent", "tracestate")
# OpenTelemetry's conventions for RPC servers: the other codes are their caller's doing.
_OUR_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Tracer:
    """Begins the traces of a server's calls. Spans are sent from a thread of their own; a collector that fails harms no call."""

    def __init__(self, endpoint: str, *, service: str, sampled_share: float) -> None:
        """`endpoint` is `http://host:port` or, for TLS, `https://…`; the standard `OTEL_*` variables set the rest."""
        self._exporter = OTLPSpanExporter(endpoint if "://" in endpoint else f"http://{endpoint}", timeout=EXPORT_S)
        resource = Resource.create({"service.name": service, "service.instance.id": socket.gethostname()})
        # A caller that samples decides for its whole trace, else half of it would be missing.
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(sampled_share)), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter, max_queue_size=QUEUE_SPANS))
        self._tracer = self._provider.get_tracer("hone")

    def begin(self, method: str, metadata: Iterable[tuple[str, Any]]) -> "Trace":
        """The span of a call of `/package.Service/Method`, in the caller's trace where `metadata` names one (W3C Trace Context)."""
        name = method.lstrip("/")
        parent = _W3C.extract({key: value for key, value in metadata if key in _CARRIED})
        return Trace(self._tracer, self._tracer.start_span(name, parent, otel.SpanKind.SERVER, _rpc(name)))

    def close(self) -> None:
        """Sends what is left, within `FLUSH_S`."""
        giving_up = threading.Timer(FLUSH_S, self._exporter.shutdown)
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()


class Trace:
    """A place in a trace: a span, and where spans below it come from."""

    __slots__ = ("_span", "_tracer", "begun")

    def __init__(self, tracer: otel.Tracer, span: otel.Span) -> None:
        self._tracer = tracer
        self._span = span
        self.begun = time.monotonic()

    @property
    def trace_id(self) -> str:
        return otel.format_trace_id(self._span.get_span_context().trace_id)

    @property
    def recorded(self) -> bool:
        """False where the trace is not sampled, or the span has ended."""
        return self._span.is_recording()

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    @contextmanager
    def span(self, name: str, attributes: Attributes, kind: otel.SpanKind = otel.SpanKind.INTERNAL) -> Iterator[None]:
        """The block as a span below this one; a block that raises is marked with the error's class, never its text."""
        if not self.recorded:
            yield
            return
        below = Trace(self._tracer, self._tracer.start_span(name, self._context(), kind, attributes))
        try:
            with tracing.within(below):
                yield
        except BaseException as error:
            below._span.set_status(otel.Status(otel.StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            below._span.end()

    def record(self, name: str, begun: float, ended: float, attributes: Attributes, links: Sequence["Trace"] = ()) -> "Trace":
        """A span below this one that is over already; the times are on the monotonic clock."""
        to_epoch_s = time.time() - time.monotonic()
        span = self._tracer.start_span(
            name,
            self._context(),
            attributes=attributes,
            links=[otel.Link(trace._span.get_span_context()) for trace in links],
            start_time=round((begun + to_epoch_s) * 1e9),
        )
        span.end(round((ended + to_epoch_s) * 1e9))
        return Trace(self._tracer, span)

    def end(self, code: grpc.StatusCode) -> None:
        """Ends a call's span with the call's status."""
        self._span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code in _OUR_FAULTS:
            self._span.set_status(otel.Status(otel.StatusCode.ERROR, code.name))
        self._span.end()

    def headers(self) -> dict[str, str]:
        """What takes the trace along in an outgoing call."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, self._context())
        return carrier

    def _context(self) -> Context:
        return otel.set_span_in_context(self._span)


def _rpc(name: str) -> Attributes:
    service, _, method = name.partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}


class OutgoingCalls(grpc.aio.UnaryUnaryClientInterceptor):
    """Takes the trace of the call being answered along in the calls made for it, each as a span."""

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        trace = tracing.current()
        if trace is None:
            return await continuation(client_call_details, request)
        name = _text(client_call_details.method).lstrip("/")
        with trace.span(name, _rpc(name), otel.SpanKind.CLIENT):
            inner = tracing.current() or trace
            call = await continuation(_with_headers(client_call_details, inner.headers()), request)
            inner.note({"rpc.grpc.status_code": (await call.code()).value[0]})
            return call


def _with_headers(details: grpc.aio.ClientCallDetails, headers: Mapping[str, str]) -> grpc.aio.ClientCallDetails:
    return grpc.aio.ClientCallDetails(
        method=details.method,
        timeout=details.timeout,
        metadata=grpc.aio.Metadata(*(details.metadata or ()), *headers.items()),
        credentials=details.credentials,
        wait_for_ready=details.wait_for_ready,
    )


def _text(method: Any) -> str:
    """gRPC gives it as bytes, and is typed to give text."""
    return method.decode() if isinstance(method, bytes) else str(method)
