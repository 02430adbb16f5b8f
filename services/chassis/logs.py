"""Structured logs: one JSON object a line on standard error."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from structlog.typing import Processor

from services.chassis import call, tracing

Line = MutableMapping[str, Any]


def configure(level: str) -> None:
    """Sets the process's log format and its least severe level (`debug`, `info`, `warning`, `error`).

    Libraries' own lines, from warnings upwards, take the same form. JSON escapes what a line holds, line breaks included.
    """
    common: list[Processor] = [
        _name_call,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *common, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    _Libraries.adopt([structlog.stdlib.add_logger_name, *common], rendering)


class _Libraries(logging.StreamHandler[Any]):
    """What libraries log through the standard library."""

    @classmethod
    def adopt(cls, before: list[Processor], rendering: list[Processor]) -> None:
        handler = cls(sys.stderr)
        handler.setLevel(logging.WARNING)
        meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
        handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=[meta, *rendering]))
        root = logging.getLogger()
        for earlier in [each for each in root.handlers if isinstance(each, cls)]:
            root.removeHandler(earlier)
        root.addHandler(handler)


def _name_call(logger: object, method: str, line: Line) -> Line:
    """Which call a line was written for, and in which trace."""
    running = call.running()
    if running is None:
        return line
    line.setdefault("request_id", running.request_id)
    trace = tracing.current()
    trace_id = trace.trace_id if trace is not None else running.trace_id
    if trace_id:
        line.setdefault("trace_id", trace_id)
    return line
