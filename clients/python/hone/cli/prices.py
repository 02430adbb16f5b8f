"""Economics from a file and from options."""

import json
import math
from pathlib import Path

from hone.optimization.v1 import goals_pb2

_FIELDS = goals_pb2.Economics.DESCRIPTOR.fields_by_name


def economics(path: Path | None, options: dict[str, str | float], known: goals_pb2.Economics | None = None) -> goals_pb2.Economics | None:
    """What `known` tells, over it what the file tells, over that what the options tell; an option that is "" or 0 tells nothing.

    None where nothing is told. Raises ValueError, which names what is no field, or holds no value of one.
    """
    told = (_read(path) if path else {}) | {name: value for name, value in options.items() if value}
    if not told and known is None:
        return None
    made = goals_pb2.Economics()
    if known is not None:
        made.CopyFrom(known)
    for name, value in told.items():
        setattr(made, name, value)
    return made


def _read(path: Path) -> dict[str, str | float]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be an object of {', '.join(_FIELDS)}")
    faults = [fault for name, value in content.items() if (fault := _fault(name, value))]
    if faults:
        raise ValueError(f"{path}: {'; '.join(faults)}")
    return content


def _fault(name: str, value: object) -> str:
    """Empty where there is none."""
    if name not in _FIELDS:
        return f"{name}: not one of {', '.join(_FIELDS)}"
    if _FIELDS[name].type == _FIELDS[name].TYPE_STRING:
        return "" if isinstance(value, str) else f"{name}: must be a text"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"{name}: must be a number"
    is_count = _FIELDS[name].type == _FIELDS[name].TYPE_INT32
    return f"{name}: must be a whole number" if is_count and not isinstance(value, int) else ""
