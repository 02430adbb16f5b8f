"""How a version advises to be served: `serving` of its recipe, written by the advisor that measured it, read field by field.

Advice that does not fit is passed over and named, never obeyed half: a version made for another machine, or by a newer advisor,
is served all the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.inference.batching import Batching
from services.inference.parallelism import Parallelism, advised, is_count

_MOST_AGE_S = 3600.0  # no call waits longer


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an operator's settings and this machine allow."""

    cores: int
    queue_rows: int
    queue_tokens: int


@dataclass(frozen=True, slots=True)
class Advice:
    """`settings` by their names in the service's settings; `passed_over` tells what was not taken, and why, by its name."""

    parallelism: Parallelism | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    remembers: bool = True
    passed_over: Mapping[str, str] = field(default_factory=dict)


def read_advice(recipe: Mapping[str, Any], bounds: Bounds) -> Advice:
    """The sound part of a recipe's advice; all of it may be absent."""
    serving = recipe.get("serving", {})
    if not isinstance(serving, Mapping):
        return Advice(passed_over={"serving": f"{serving!r} is no mapping"})
    passed_over = dict(_faults(serving, bounds))
    sound = {name: value for name, value in serving.items() if name not in passed_over}
    return Advice(
        parallelism=None if "cores" in passed_over else advised(recipe, bounds.cores),
        settings={name: _AS_SETTING[name](sound[name]) for name in _AS_SETTING if name in sound},
        remembers=sound.get("remember", True),
        passed_over=passed_over,
    )


_AS_SETTING: Mapping[str, Callable[[Any], Any]] = {
    "batching": Batching,
    "buckets": tuple,
    "batch_rows": int,
    "batch_tokens": int,
    "max_age_s": float,
}


def _faults(serving: Mapping[str, Any], bounds: Bounds) -> Iterator[tuple[str, str]]:
    yield from _parallelism_faults(serving, bounds.cores)
    most = {"batch_rows": bounds.queue_rows, "batch_tokens": bounds.queue_tokens}
    for name, value in serving.items():
        if name in ("instances", "threads", "cores"):
            continue
        if name in most:
            fault = _count_fault(value, most[name])
        else:
            fault = _FAULTS[name](value) if name in _FAULTS else "is no setting that this service knows"
        if fault:
            yield name, fault


def _parallelism_faults(serving: Mapping[str, Any], cores: int) -> Iterator[tuple[str, str]]:
    """Both or neither: half of a division says nothing. Where the cores are told that they divide, there must be as many."""
    if "cores" in serving and (type(serving["cores"]) is not int or serving["cores"] != cores):
        yield "cores", f"instances and threads are for {serving['cores']!r}; here are {cores}"
    given = [name for name in ("instances", "threads") if name in serving]
    wrong = [name for name in given if not is_count(serving[name])]
    if wrong:
        yield from ((name, f"{serving[name]!r} is no positive whole number") for name in wrong)
    elif len(given) == 1:
        yield given[0], "stands without " + ("threads" if given == ["instances"] else "instances")
    elif given and serving["instances"] * serving["threads"] > cores:
        yield "instances", f"{serving['instances']} of {serving['threads']} threads need more than the {cores} cores here"


def _count_fault(value: object, most: int) -> str:
    if not is_count(value):
        return f"{value!r} is no positive whole number"
    return f"{value} is more than the {most} that may wait" if value > most else ""


def _batching_fault(value: object) -> str:
    return "" if isinstance(value, str) and value in [*Batching] else f"{value!r} is not among {', '.join(Batching)}"


def _buckets_fault(value: object) -> str:
    bounds = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    sound = bounds and all(is_count(bound) for bound in bounds) and bounds == sorted(set(bounds))
    return "" if sound else f"{value!r} are no positive, ascending whole numbers"


def _age_fault(value: object) -> str:
    sound = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _MOST_AGE_S
    return "" if sound else f"{value!r} is no number of seconds above 0 and up to {_MOST_AGE_S:g}"


def _remember_fault(value: object) -> str:
    return "" if isinstance(value, bool) else f"{value!r} is neither true nor false"


_FAULTS: Mapping[str, Callable[[object], str]] = {
    "batching": _batching_fault,
    "buckets": _buckets_fault,
    "max_age_s": _age_fault,
    "remember": _remember_fault,
}
