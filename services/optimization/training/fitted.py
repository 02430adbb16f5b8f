"""What a training run tells of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Point = tuple[int, float]  # (step, value)

LARGEST_CURVE = 200  # points of one curve in a report


def thinned(points: Sequence[Point], most: int = LARGEST_CURVE) -> list[Point]:
    """At most `most` of the points, evenly spread, the first and the last among them. `most` is at least 2."""
    if len(points) <= most:
        return list(points)
    last = len(points) - 1
    return [points[index * last // (most - 1)] for index in range(most)]


class Curves:
    """Points by curve, never more than twice LARGEST_CURVE of one: past that, every other one goes, and later points come half as often."""

    def __init__(self, content: Mapping[str, Any] | None = None) -> None:
        """`content` as `plain` answered it."""
        self._points: dict[str, list[Point]] = {}
        self._strides: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        for name, (seen, stride, points) in (content or {}).items():
            self._seen[name], self._strides[name] = seen, stride
            self._points[name] = [(step, value) for step, value in points]

    def record(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            seen, stride = self._seen.get(name, 0), self._strides.get(name, 1)
            self._seen[name], self._strides[name] = seen + 1, stride
            points = self._points.setdefault(name, [])
            if seen % stride == 0:
                points.append((step, value))
            if len(points) > 2 * LARGEST_CURVE:
                self._points[name], self._strides[name] = points[::2], 2 * stride

    @property
    def points(self) -> Mapping[str, Sequence[Point]]:
        return self._points

    def plain(self) -> dict[str, Any]:
        """Plain JSON that a new object goes on from."""
        return {name: [self._seen[name], self._strides[name], points] for name, points in self._points.items()}


@dataclass(frozen=True)
class Fitted:
    """A finished run. `best` is the validation whose weights were kept, None when nothing was held out."""

    curves: Mapping[str, Sequence[Point]]
    steps: int
    epochs: float
    stopped: str
    best: Point | None
    examples: int
    held_out: int
    labelled: bool
    teacher_outputs: str
    devices: tuple[str, ...]
    seconds: float
    remarks: tuple[str, ...] = ()

    def notes(self) -> dict[str, Any]:
        """Plain JSON for a technique's notes."""
        return {
            "curves": {name: [list(point) for point in thinned(points)] for name, points in self.curves.items()},
            "steps": self.steps,
            "epochs": round(self.epochs, 3),
            "stopped": self.stopped,
            "best": {"step": self.best[0], "validation_loss": self.best[1]} if self.best else None,
            "examples": self.examples,
            "held_out": self.held_out,
            "labelled": self.labelled,
            "teacher_outputs": self.teacher_outputs,
            "devices": list(self.devices),
            "seconds": round(self.seconds, 3),
            **({"remarks": list(self.remarks)} if self.remarks else {}),
        }
