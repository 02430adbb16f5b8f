"""Whether what was measured in the end meets what was asked for: an explicit target is a gate."""

from collections.abc import Iterable, Iterator

from services.optimization.advisor.scenarios import Targets
from services.optimization.advisor.serving.served import ServedAdvice, ServedFigures
from services.optimization.report import Candidate, Interval, Measurement


def missed(
    targets: Targets, measurement: Measurement, speedup: Interval | None, served: ServedAdvice | None, serving_note: str
) -> tuple[str, ...]:
    """A sentence for each target that the final measurements do not reach; the model's own loss is the gates'."""
    of_service = _of_service(targets, served) if served else _unserved(targets, serving_note)
    return (*_of_model(targets, measurement), *_of_speed(targets.min_speedup, speedup), *of_service)


def fitting(targets: Targets, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those whose own size, memory and speed reach the targets; what was not measured does not."""
    measured = [(found, found.measurement) for found in candidates if found.measurement is not None]
    return [found for found, figures in measured if not [*_of_model(targets, figures), *_of_speed(targets.min_speedup, found.speedup)]]


def _of_speed(wanted: float | None, speedup: Interval | None) -> Iterator[str]:
    if wanted is not None and speedup is not None and speedup.low < wanted:
        yield f"min_speedup: {speedup.estimate:.2f} (95 % interval {speedup.low:.2f} to {speedup.high:.2f}) is not surely {wanted:g}"


def _of_model(targets: Targets, measurement: Measurement) -> Iterator[str]:
    if targets.max_size_bytes is not None and measurement.size_bytes > targets.max_size_bytes:
        yield f"max_size_bytes: {measurement.size_bytes:,} bytes are more than {targets.max_size_bytes:,}"
    if targets.max_memory_bytes is not None and measurement.memory_bytes > targets.max_memory_bytes:
        yield f"max_memory_bytes: {measurement.memory_bytes:,} bytes are more than {targets.max_memory_bytes:,}"


def _of_service(targets: Targets, served: ServedAdvice) -> Iterator[str]:
    speedup, wanted = served.speedup, targets.min_served_speedup
    if wanted is not None and speedup.low < wanted:
        yield f"min_served_speedup: {speedup.estimate:.2f} (95 % interval {speedup.low:.2f} to {speedup.high:.2f}) is not surely {wanted:g}"
    if targets.max_p99_ms is not None:
        yield from _latency(targets.max_p99_ms, _figures(served))


def _figures(served: ServedAdvice) -> ServedFigures | None:
    """At the traffic's own rate; without one, at the most callers that keep to the target."""
    if served.candidate_at_rate is not None:
        return served.candidate_at_rate
    return served.candidate_capacity.figures if served.candidate_capacity else None


def _latency(wanted_ms: float, figures: ServedFigures | None) -> Iterator[str]:
    if figures is None:
        yield f"max_p99_ms: a single caller already waits for longer than {wanted_ms:g} ms"
    elif figures.p99_ms is None or figures.p99_ms > wanted_ms:
        told = "more than one in a hundred was not answered" if figures.p99_ms is None else f"{figures.p99_ms:.1f} ms"
        yield f"max_p99_ms: {told} is more than {wanted_ms:g} ms"


def _unserved(targets: Targets, note: str) -> Iterator[str]:
    for name in ("min_served_speedup", "max_p99_ms"):
        if getattr(targets, name) is not None:
            yield f"{name}: could not be measured: {note}"
