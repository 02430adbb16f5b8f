"""The trace of the call being answered, for code that has something to tell of it.

Where tracing is off this costs one look-up, and OpenTelemetry is not imported.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.chassis.otlp import Trace

Attributes = Mapping[str, str | int | float | bool]

_current: ContextVar["Trace | None"] = ContextVar("trace", default=None)
_NOTHING: AbstractContextManager[None] = nullcontext()


def current() -> "Trace | None":
    """Where new spans go; None where tracing is off or the code runs for no call."""
    return _current.get()


def begin(trace: "Trace") -> None:
    """From here on the running task works for `trace`; each call has a task of its own, so nothing needs to be put back."""
    _current.set(trace)


@contextmanager
def within(trace: "Trace | None") -> Iterator[None]:
    """The block works for `trace`, for tasks that serve several calls in turn."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)


def span(name: str, attributes: Attributes = MappingProxyType({})) -> AbstractContextManager[None]:
    """The block as a span of its own."""
    trace = _current.get()
    return _NOTHING if trace is None else trace.span(name, attributes)


def note(attributes: Attributes) -> None:
    """Adds to the current span."""
    trace = _current.get()
    if trace is not None:
        trace.note(attributes)
