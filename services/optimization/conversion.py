"""Between messages and plain values, as every door converts them alike."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import ValidationError

from services.chassis.faults import InvalidField
from services.repository.references import BadName

T = TypeVar("T")


def checked(prefix: str, make: Callable[[], T]) -> T:
    """`make()`, its first fault as InvalidField with the path of the field in the request."""
    try:
        return make()
    except ValidationError as error:
        fault = error.errors()[0]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
        raise InvalidField(f"{prefix}{path}", str(fault["msg"])) from error


def faults_of(prefix: str, error: ValidationError) -> Iterator[tuple[str, str]]:
    """All of them: the path of each field in the request, and what is wrong with it, with the bound where it has to stay within one."""
    for fault in error.errors():
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
        bounds = fault.get("ctx", {})
        nearest = next((f"; nearest feasible: {bounds[name]:g}" for name in ("ge", "le") if name in bounds), "")
        yield f"{prefix}{path}", f"{fault['msg']}{nearest}"


def named(field: str, check: Callable[[str], T], value: str) -> T:
    """`check(value)`, its BadName as InvalidField with the path of the field in the request."""
    try:
        return check(value)
    except BadName as error:
        raise InvalidField(field, str(error)) from error


def struct(content: Mapping[str, Any]) -> Struct:
    """Plain JSON as a Struct."""
    message = Struct()
    json_format.Parse(json.dumps(content, default=str), message)
    return message


def timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment)
    return message
