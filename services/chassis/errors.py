"""From exception to gRPC status: one table per service, looked up along the exception's MRO."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import grpc

from services.chassis import faults

PUSHBACK_KEY = "grpc-retry-pushback-ms"
MAX_DETAILS_CHARACTERS = 2_000  # details travel as metadata: past the peer's limit the whole status would be lost

COMMON: Mapping[type[BaseException], grpc.StatusCode] = MappingProxyType(
    {
        faults.InvalidField: grpc.StatusCode.INVALID_ARGUMENT,
        faults.NotFound: grpc.StatusCode.NOT_FOUND,
        faults.AlreadyThere: grpc.StatusCode.ALREADY_EXISTS,
        faults.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
        faults.Unavailable: grpc.StatusCode.UNAVAILABLE,
        faults.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
        faults.DeadlineMissed: grpc.StatusCode.DEADLINE_EXCEEDED,
        faults.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
        TimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)


@dataclass(frozen=True, slots=True)
class Status:
    """What the caller is told. `error_id` is set when the cause stays in the log."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str], ...] = ()
    error_id: str = ""


class ErrorTable:
    """`COMMON` and a service's own entries.

    What is not in the table is INTERNAL with an error id: its text may hold paths and secrets, so it stays in the log.
    """

    def __init__(self, own: Mapping[type[BaseException], grpc.StatusCode] | None = None) -> None:
        self._codes = {**COMMON, **(own or {})}

    def status(self, error: BaseException) -> Status:
        """The status for an exception; the nearest class along its MRO decides."""
        for cls in type(error).__mro__:
            code = self._codes.get(cls)
            if code is not None:
                details = str(error)[:MAX_DETAILS_CHARACTERS] or code.name.lower().replace("_", " ")
                return Status(code, details, _pushback(error))
        error_id = uuid.uuid4().hex
        return Status(grpc.StatusCode.INTERNAL, f"internal error {error_id}", (), error_id)


def _pushback(error: BaseException) -> tuple[tuple[str, str], ...]:
    """When to come back, where the fault knows it; gRPC's own retries obey this key."""
    retry_after_s = error.retry_after_s if isinstance(error, faults.Overloaded | faults.Unavailable) else None
    if retry_after_s is None:
        return ()
    return ((PUSHBACK_KEY, str(max(1, round(retry_after_s * 1000)))),)
