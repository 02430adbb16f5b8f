"""How many instances of a version, with how many threads each: what may be asked for, and what was advised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard


@dataclass(frozen=True, slots=True)
class Parallelism:
    """Batches at once, and threads within each."""

    instances: int
    threads: int

    def __str__(self) -> str:
        return f"{self.instances} x {self.threads} threads"

    def cores(self, available: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Each instance's own cores, of those available; there must be enough."""
        return tuple(available[number * self.threads : (number + 1) * self.threads] for number in range(self.instances))


def candidates(cores: int, most_instances: int) -> tuple[Parallelism, ...]:
    """Divisions of the cores worth comparing: all threads in one batch, a batch on each core, and half-way between."""
    few = (1, 2, min(cores, most_instances))
    return tuple(Parallelism(instances, cores // instances) for instances in sorted(set(few)) if instances <= min(cores, most_instances))


def advised(recipe: Mapping[str, Any], cores: int) -> Parallelism | None:
    """`serving: {instances, threads}` of a version's recipe, where it is whole and this machine has the cores for it."""
    serving = recipe.get("serving")
    if not isinstance(serving, Mapping):
        return None
    instances, threads = serving.get("instances"), serving.get("threads")
    if not (is_count(instances) and is_count(threads)) or instances * threads > cores:
        return None
    return Parallelism(instances, threads)


def is_count(value: object) -> TypeGuard[int]:
    """Whether it is a positive whole number; JSON's true is none, though Python counts it as 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
