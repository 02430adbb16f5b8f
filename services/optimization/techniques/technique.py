"""The shape of a technique: a declaration that costs nothing to read, and a function from model folder to model folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from services.optimization.environment import cpu_features
from services.optimization.examples import Examples
from services.optimization.jobs.job import NO_METRICS
from services.optimization.remembered import NOTHING, Remembered
from services.repository.manifest import Format, Signature, Task

EVERY_TASK = frozenset(Task)
TEXT_TASKS = frozenset(task for task in Task if task.takes_text)


class Family(StrEnum):
    QUANTIZE = "quantize"
    DISTILL = "distill"
    PRUNE = "prune"
    EXPORT = "export"
    COMPILE = "compile"


class Parameters(BaseModel):
    """A technique's validated parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def uses_calibration(self) -> bool:
        """Whether the technique, with these parameters, asks for calibration examples."""
        return False

    def uses_training(self) -> bool:
        """Whether the technique, with these parameters, asks for training examples; implies that the job's original shapes the result."""
        return False


@dataclass(frozen=True)
class Model:
    """A folder and what it says of itself."""

    folder: Path
    signature: Signature


class Tell(Protocol):
    def __call__(self, fraction: float, message: str, *, step: int = 0, metrics: Mapping[str, float] = NO_METRICS) -> None:
        """Progress: `fraction` of the step, a log line (may be empty), points of curves. Raises BudgetExceeded past the job's time."""


@dataclass(frozen=True)
class Context:
    """What a technique is given. `target` exists and is empty; `scratch` is its own and is deleted afterwards.

    `checkpoints` is the step's own too and lasts until the step is finished, through kills and restarts. `outputs` lasts
    across jobs: what an expensive model answered, under names that carry the digests of that model and of the data.
    `remembered` and `original_remembered` hold for other machines, too, what is known of the job's source and of `original`.
    """

    source: Path
    signature: Signature
    target: Path
    scratch: Path
    checkpoints: Path
    outputs: Path
    parameters: Parameters
    calibration: Examples
    training: Examples
    original: Model  # what training learns from: the job's source, or the teacher that it names
    seed: int
    threads: int
    progress: Tell
    remembered: Remembered = NOTHING
    original_remembered: Remembered = NOTHING


@dataclass(frozen=True)
class Outcome:
    """The model in `target`, described. `notes` is plain JSON for the report, which draws some keys by name:

    `curves` {curve: [[step, value], …]}, `sensitivity` {layer: error, worst first}; other lists of objects become tables.
    """

    signature: Signature
    notes: Mapping[str, Any]


def _no_note(_: frozenset[str]) -> str:
    return ""


def _available() -> str:
    return ""


@dataclass(frozen=True)
class Technique:
    """A declaration. `apply` raises a class of `failures`; `version` rises whenever its results change."""

    name: str
    version: int
    family: Family
    summary: str
    parameters: type[Parameters]
    source_formats: tuple[Format, ...]
    target_format: Format | None  # None: its source's
    tasks: frozenset[Task]
    apply: Callable[[Context], Outcome]
    note_hardware: Callable[[frozenset[str]], str] = _no_note
    # Why it cannot be applied on this installation, "" when it can. Must not import what it looks for: importlib.util.find_spec.
    probe: Callable[[], str] = _available
    # Rough seconds for a source of (megabytes, training examples), before this machine has measured any.
    assume_seconds: Callable[[float, int], float] = lambda megabytes, _: 2 + 0.1 * megabytes

    @property
    def needs_calibration(self) -> bool:
        """With its default parameters."""
        return self.parameters().uses_calibration()

    @property
    def needs_training(self) -> bool:
        """With its default parameters."""
        return self.parameters().uses_training()

    def target_of(self, source: Format) -> Format:
        return self.target_format or source

    def hardware_note(self, features: frozenset[str] | None = None) -> str:
        """What the processor lacks for speed, in a sentence; empty when nothing. `features` defaults to this machine's."""
        return self.note_hardware(cpu_features() if features is None else features)
