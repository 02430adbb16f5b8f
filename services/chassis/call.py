"""The call being answered, as log lines name it."""

import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import grpc

Context = grpc.aio.ServicerContext[Any, Any]

REQUEST_ID_KEY = "x-request-id"
TRACE_KEY = "traceparent"
_LONGEST_ID = 128

_current: ContextVar["Call | None"] = ContextVar("call", default=None)


class Call:
    """A call for the length of a `with` block.

    Its ids are read when a line is logged: most calls log nothing, and structlog's own bound variables would be bound for all of them.
    """

    __slots__ = ("_context", "_request_id")

    def __init__(self, context: Context) -> None:
        self._context: Context | None = context
        self._request_id = ""

    def __enter__(self) -> Self:
        _current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._context = None  # a task that the call began and that outlives it belongs to no call

    @property
    def running(self) -> bool:
        return self._context is not None

    @property
    def request_id(self) -> str:
        """The caller's `x-request-id`, else one made here."""
        if not self._request_id:
            self._request_id = next(self._told(REQUEST_ID_KEY), "")[:_LONGEST_ID] or uuid.uuid4().hex
        return self._request_id

    @property
    def trace_id(self) -> str:
        """The trace that the caller says the call belongs to (W3C `traceparent`: version, trace, span, flags); "" for none."""
        parts = next(self._told(TRACE_KEY), "").split("-")
        return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else ""

    def _told(self, key: str) -> Iterator[str]:
        metadata = self._context.invocation_metadata() if self._context is not None else None
        return (str(value) for name, value in metadata or () if name == key)


def running() -> Call | None:
    """The call that the code runs for; None outside of any."""
    call = _current.get()
    return call if call is not None and call.running else None
