"""A request's parameters, whose names the protocol's extensions reserve, as what the core understands."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from services.chassis.faults import InvalidField
from services.inference.batching import MAX_PRIORITY
from services.inference.oip.faults import NotOffered

Value = bool | int | float | str | None

PRIORITY_LEVELS = MAX_PRIORITY + 1
_SEQUENCES = ("sequence_id", "sequence_start", "sequence_end")
_EMPTY_FINAL = "triton_enable_empty_final_response"


@dataclass(frozen=True, slots=True)
class Parameters:
    """`priority` is ours, 0 to 9, higher earlier; `timeout_s` is how long an answer is of use."""

    priority: int = 0
    timeout_s: float = math.inf
    sticky_key: str = ""
    truncate: bool = False
    bypass_cache: bool = False


NONE = Parameters()


def read_parameters(given: Mapping[str, Value]) -> Parameters:
    """Parameters of an inference request; names that nobody reserves are ignored, as Triton does.

    Raises:
        InvalidField: a value is of the wrong kind or out of range, or the name is reserved and unknown.
        NotOffered: sequences.
    """
    if not given:
        return NONE
    for name, value in given.items():
        if name in _SEQUENCES and value:
            raise NotOffered(f"parameters[{name}]: sequences are not offered; each request stands alone")
        if name.startswith("triton_") and name != _EMPTY_FINAL:
            raise InvalidField(f"parameters[{name}]", "names that begin with 'triton_' are reserved")
    return Parameters(
        priority=_priority(_whole(given, "priority")),
        timeout_s=_whole(given, "timeout") / 1e6 or math.inf,
        sticky_key=_text(given, "hone_sticky_key"),
        truncate=_flag(given, "hone_truncate"),
        bypass_cache=_flag(given, "hone_bypass_cache"),
    )


def whole(field: str, value: Value) -> int:
    """A count, 0 or more, sent as int64 or uint64. Raises InvalidField."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidField(field, f"must be a whole number from 0, not {str(value)[:40]!r}")
    return value


def _priority(level: int) -> int:
    """Level 1, the highest, is our 9; 0 stands for the default, which is the lowest level."""
    if level > PRIORITY_LEVELS:
        raise InvalidField("parameters[priority]", f"must be 0 to {PRIORITY_LEVELS}, not {level}")
    return PRIORITY_LEVELS - level if level else 0


def _whole(given: Mapping[str, Value], name: str) -> int:
    return whole(f"parameters[{name}]", given.get(name, 0))


def _text(given: Mapping[str, Value], name: str) -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        raise InvalidField(f"parameters[{name}]", "must be a string")
    return value


def _flag(given: Mapping[str, Value], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise InvalidField(f"parameters[{name}]", "must be a bool")
    return value
