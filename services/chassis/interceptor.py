"""The one interceptor: errors to statuses, metrics, logs and deadlines for every call of a server."""

import asyncio
import inspect
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import structlog

from services.chassis.errors import ErrorTable
from services.chassis.faults import Unavailable
from services.chassis.metrics import CallMetrics

log = structlog.get_logger("hone.call")

Handler = Any  # grpc.RpcMethodHandler: a named tuple without published types
Context = grpc.aio.ServicerContext[Any, Any]

REQUEST_ID_KEY = "x-request-id"
_CODES: dict[Any, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}  # an aio context tells its code as a number
QUIET = ("/grpc.health.v1.", "/grpc.reflection.")  # probes would drown the log


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps each method once and keeps the wrapped handler.

    A call without a deadline gets `default_deadline_s`: a caller that waits for ever holds its slot for ever.
    Streams of answers are exempt, since watching is what they are for.
    """

    def __init__(self, errors: ErrorTable, metrics: CallMetrics, default_deadline_s: float) -> None:
        self._errors = errors
        self._metrics = metrics
        self._default_deadline_s = default_deadline_s
        self._wrapped: dict[str, Handler] = {}
        self._refusing = False
        self._running = 0  # calls with one answer; streams are ended by the server's stop
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """From now on answers UNAVAILABLE; returns when the running calls with one answer have ended, or after `grace_s`.

        gRPC's own stop answers what arrives meanwhile with CANCELLED, which no caller repeats.
        """
        self._refusing = True
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
        answer = (self._streaming if handler.response_streaming else self._unary)(method, _behaviour(handler))
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        return make(answer, handler.request_deserializer, handler.response_serializer)

    def _unary(self, method: str, behaviour: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
        deadline_s = self._default_deadline_s

        async def call(request: Any, context: Context) -> Any:
            with self._metrics.call(method) as outcome:
                try:
                    with self._taking():
                        if context.time_remaining() is not None:
                            return await behaviour(request, context)
                        async with asyncio.timeout(deadline_s):
                            return await behaviour(request, context)
                except Exception as error:
                    await self._refuse(method, context, error, outcome.set_code)

        return call

    @contextmanager
    def _taking(self) -> Iterator[None]:
        """Counts a call while it runs. Raises Unavailable while the server stops."""
        if self._refusing:
            raise Unavailable("the server is stopping")
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def _streaming(self, method: str, behaviour: Callable[[Any, Context], Any]) -> Callable[[Any, Context], Any]:
        async def iterate(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._metrics.call(method) as outcome:
                try:
                    if self._refusing:
                        raise Unavailable("the server is stopping")
                    async for response in behaviour(request, context):
                        yield response
                except Exception as error:
                    await self._refuse(method, context, error, outcome.set_code)

        async def write(request: Any, context: Context) -> None:  # servicers that write to the context, as health's Watch does
            with self._metrics.call(method) as outcome:
                try:
                    await behaviour(request, context)
                except Exception as error:
                    await self._refuse(method, context, error, outcome.set_code)

        return iterate if inspect.isasyncgenfunction(behaviour) else write

    async def _refuse(self, method: str, context: Context, error: Exception, set_code: Callable[[grpc.StatusCode], None]) -> None:
        if isinstance(error, grpc.aio.AbortError):  # a library's servicer has answered already
            set_code(_CODES[context.code()])
            raise error
        status = self._errors.status(error)
        set_code(status.code)
        if not method.startswith(QUIET):
            fields = {"method": method, "code": status.code.name, "request_id": _request_id(context)}
            if status.error_id:
                log.error("call failed", error_id=status.error_id, exc_info=error, **fields)
            else:
                log.info("call refused", details=status.details, **fields)
        await context.abort(status.code, status.details, status.trailing_metadata)


def _behaviour(handler: Handler) -> Callable[[Any, Context], Any]:
    return next(b for b in (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream) if b is not None)  # type: ignore[no-any-return]


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY:
            return str(value)[:128]
    return uuid.uuid4().hex
