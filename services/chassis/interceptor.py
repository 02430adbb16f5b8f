"""The one interceptor: errors to statuses, metrics, logs and deadlines for every call of a server."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from services.chassis import tracing
from services.chassis.call import REQUEST_ID_KEY, Call, Context
from services.chassis.errors import ErrorTable
from services.chassis.faults import InvalidField, Unavailable
from services.chassis.metrics import CallMetrics, Outcome

if TYPE_CHECKING:
    from services.chassis.otlp import Tracer

log = structlog.get_logger("hone.call")

Handler = Any  # grpc.RpcMethodHandler: a named tuple without published types
_CODES: dict[Any, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}  # an aio context tells its code as a number
QUIET = ("/grpc.health.v1.", "/grpc.reflection.")  # probes would drown the log and the traces
_NOTHING: AbstractContextManager[None] = nullcontext()


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps each method once and keeps the wrapped handler.

    A call without a deadline gets `default_deadline_s`: a caller that waits for ever holds its slot for ever.
    Streams of answers are exempt, since watching is what they are for. `log_every_call` writes a line for each, at debug level.
    """

    def __init__(
        self,
        errors: ErrorTable,
        metrics: CallMetrics,
        default_deadline_s: float,
        *,
        tracer: "Tracer | None" = None,
        log_every_call: bool = False,
    ) -> None:
        self._errors = errors
        self._metrics = metrics
        self._default_deadline_s = default_deadline_s
        self._tracer = tracer
        self._log_every_call = log_every_call
        self._wrapped: dict[str, Handler] = {}
        self._refusing = False
        self._running = 0  # calls with one answer; streams are ended by the server's stop
        self._idle = asyncio.Event()

    async def drain(self, grace_s: float) -> None:
        """From now on answers UNAVAILABLE; returns when the running calls with one answer have ended, or after `grace_s`.

        gRPC's own stop answers what arrives meanwhile with CANCELLED, which no caller repeats.
        """
        self._refusing = True
        if not self._running:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]], handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        method: str = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:  # an unknown method: gRPC itself answers UNIMPLEMENTED; not kept, or junk names would pile up
                return None
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        read = _each_readable if handler.request_streaming else _readable
        answer = (self._streaming if handler.response_streaming else self._unary)(method, _behaviour(handler), read)
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        return make(answer, _reader(handler.request_deserializer), handler.response_serializer)

    def _unary(
        self, method: str, behaviour: Callable[[Any, Context], Awaitable[Any]], read: Callable[[Any], Any]
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        deadline_s = self._default_deadline_s

        async def answer(request: Any, context: Context) -> Any:
            with self._metrics.call(method) as outcome, Call(context) as call, self._telling(method, context, outcome):
                self._running += 1
                try:
                    if self._refusing:
                        raise Unavailable("the server is stopping")
                    if context.time_remaining() is not None:
                        return await behaviour(read(request), context)
                    async with asyncio.timeout(deadline_s):
                        return await behaviour(read(request), context)
                except Exception as error:
                    await self._refuse(method, context, error, call, outcome)
                finally:
                    self._running -= 1
                    if self._refusing and not self._running:
                        self._idle.set()

        return answer

    def _streaming(
        self, method: str, behaviour: Callable[[Any, Context], Any], read: Callable[[Any], Any]
    ) -> Callable[[Any, Context], Any]:
        async def iterate(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._metrics.call(method) as outcome, Call(context) as call, self._telling(method, context, outcome):
                try:
                    if self._refusing:
                        raise Unavailable("the server is stopping")
                    async with aclosing(behaviour(read(request), context)) as responses:  # a caller that goes ends the work for it
                        async for response in responses:
                            yield response
                except Exception as error:
                    await self._refuse(method, context, error, call, outcome)

        async def write(request: Any, context: Context) -> None:  # servicers that write to the context, as health's Watch does
            with self._metrics.call(method) as outcome, Call(context) as call, self._telling(method, context, outcome):
                try:
                    await behaviour(read(request), context)
                except Exception as error:
                    await self._refuse(method, context, error, call, outcome)

        return iterate if inspect.isasyncgenfunction(behaviour) else write

    def _telling(self, method: str, context: Context, outcome: Outcome) -> AbstractContextManager[None]:
        """The call's span and its line in the log, where either is wanted."""
        if (self._tracer is None and not self._log_every_call) or method.startswith(QUIET):
            return _NOTHING
        return self._told(method, context, outcome)

    @contextmanager
    def _told(self, method: str, context: Context, outcome: Outcome) -> Iterator[None]:
        trace = self._tracer.begin(method, context.invocation_metadata() or ()) if self._tracer is not None else None
        if trace is not None:
            tracing.begin(trace)
        try:
            yield
        except BaseException:
            outcome.gone()
            raise
        finally:
            if self._log_every_call:
                log.debug("call", method=method, code=outcome.code.name, milliseconds=_milliseconds(outcome.begun))
            if trace is not None:
                trace.end(outcome.code)

    async def _refuse(self, method: str, context: Context, error: Exception, call: Call, outcome: Outcome) -> None:
        """Answers with the error's status. The call's id goes along, so that the caller can name it to whoever reads the log."""
        if isinstance(error, grpc.aio.AbortError):  # a library's servicer has answered already
            outcome.code = _CODES[context.code()]
            raise error
        status = self._errors.status(error)
        outcome.code = status.code
        if not method.startswith(QUIET):
            fields = {"method": method, "code": status.code.name, "milliseconds": _milliseconds(outcome.begun)}
            if status.error_id:
                log.error("call failed", error_id=status.error_id, exc_info=error, **fields)
            else:
                log.info("call refused", details=status.details, **fields)
        await context.abort(status.code, status.details, (*status.trailing_metadata, (REQUEST_ID_KEY, call.request_id)))


_UNREADABLE = object()  # stands for bytes that are no message of the method's type


def _reader(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """gRPC answers a message that cannot be read with UNKNOWN and a traceback in the log, before any of our code runs."""
    if deserialize is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _UNREADABLE

    return read


def _readable(request: Any) -> Any:
    if request is _UNREADABLE:
        raise InvalidField("request", "is not a message of the type that the method takes")
    return request


async def _each_readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _readable(request)


def _behaviour(handler: Handler) -> Callable[[Any, Context], Any]:
    return next(b for b in (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream) if b is not None)  # type: ignore[no-any-return]


def _milliseconds(begun: float) -> float:
    return round((time.monotonic() - begun) * 1000, 3)
