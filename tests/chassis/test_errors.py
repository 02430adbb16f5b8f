"""From exception to status."""

import grpc
import pytest

from services.chassis import faults
from services.chassis.errors import PUSHBACK_KEY, ErrorTable

CODES = {
    faults.InvalidField("rows[2].text", "is empty"): grpc.StatusCode.INVALID_ARGUMENT,
    faults.NotFound("no model x"): grpc.StatusCode.NOT_FOUND,
    faults.AlreadyThere("x"): grpc.StatusCode.ALREADY_EXISTS,
    faults.WrongState("x"): grpc.StatusCode.FAILED_PRECONDITION,
    faults.Unavailable("x"): grpc.StatusCode.UNAVAILABLE,
    faults.Overloaded("x", 1.0): grpc.StatusCode.RESOURCE_EXHAUSTED,
    faults.DeadlineMissed("x"): grpc.StatusCode.DEADLINE_EXCEEDED,
    faults.OutOfRange("x"): grpc.StatusCode.OUT_OF_RANGE,
    TimeoutError("x"): grpc.StatusCode.DEADLINE_EXCEEDED,
}


@pytest.mark.parametrize("error", CODES, ids=lambda error: type(error).__name__)
def test_each_fault_has_its_code_and_tells_its_text(error: BaseException) -> None:
    status = ErrorTable().status(error)
    assert (status.code, status.details, status.error_id) == (CODES[error], str(error), "")


def test_the_nearest_class_along_the_mro_decides() -> None:
    class Broad(Exception): ...

    class Narrow(Broad): ...

    class Narrower(Narrow): ...

    table = ErrorTable({Broad: grpc.StatusCode.ABORTED, Narrow: grpc.StatusCode.DATA_LOSS})
    assert table.status(Broad("x")).code is grpc.StatusCode.ABORTED
    assert table.status(Narrower("x")).code is grpc.StatusCode.DATA_LOSS


def test_a_service_may_say_otherwise_than_the_common_table() -> None:
    table = ErrorTable({faults.NotFound: grpc.StatusCode.UNAVAILABLE})
    assert table.status(faults.NotFound("x")).code is grpc.StatusCode.UNAVAILABLE
    assert ErrorTable().status(faults.NotFound("x")).code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("error", [RuntimeError("/srv/secret"), KeyError("token"), ValueError("/srv/secret"), OSError("/srv/secret")])
def test_what_is_not_in_the_table_is_internal_and_keeps_its_text(error: Exception) -> None:
    first, second = ErrorTable().status(error), ErrorTable().status(error)
    assert first.code is grpc.StatusCode.INTERNAL
    assert first.error_id in first.details
    assert first.error_id != second.error_id
    assert "secret" not in first.details
    assert "token" not in first.details


def test_a_fault_without_text_still_says_something() -> None:
    assert ErrorTable().status(faults.NotFound()).details == "not found"


@pytest.mark.parametrize(("retry_after_s", "pushback_ms"), [(1.5, "1500"), (0.0, "1"), (0.0004, "1")])
def test_overload_tells_when_to_come_back(retry_after_s: float, pushback_ms: str) -> None:
    assert ErrorTable().status(faults.Overloaded("x", retry_after_s)).trailing_metadata == ((PUSHBACK_KEY, pushback_ms),)


def test_a_field_fault_keeps_the_path() -> None:
    assert faults.InvalidField("inputs[2].tensor.shape", "is negative").field == "inputs[2].tensor.shape"


def test_a_text_longer_than_metadata_may_be_is_cut() -> None:
    details = ErrorTable().status(faults.NotFound("x" * 100_000)).details
    assert details.startswith("xxx")
    assert len(details) <= 2_000
