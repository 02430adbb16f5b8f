"""The shape of a technique: a declaration that costs nothing to read, and a function from model folder to model folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from services.optimization.environment import cpu_features
from services.repository.manifest import Format, Signature


class Parameters(BaseModel):
    """A technique's validated parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def uses_calibration(self) -> bool:
        """Whether the technique, with these parameters, asks for calibration texts."""
        return False


@dataclass(frozen=True)
class Context:
    """What a technique is given. `target` exists and is empty; `scratch` is its own and is deleted afterwards."""

    source: Path
    signature: Signature
    target: Path
    scratch: Path
    parameters: Parameters
    calibration_texts: Sequence[str]
    seed: int
    threads: int
    progress: Callable[[float, str], None]


@dataclass(frozen=True)
class Outcome:
    """The model in `target`, described; `notes` is plain JSON for the report."""

    signature: Signature
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Technique:
    """A declaration. `apply` raises a class of `failures`; `version` rises whenever its results change."""

    name: str
    version: int
    summary: str
    parameters: type[Parameters]
    source_formats: tuple[Format, ...]
    target_format: Format
    apply: Callable[[Context], Outcome]
    note_hardware: Callable[[frozenset[str]], str]

    @property
    def needs_calibration(self) -> bool:
        """With its default parameters."""
        return self.parameters().uses_calibration()

    def hardware_note(self, features: frozenset[str] | None = None) -> str:
        """What the processor lacks for speed, in a sentence; empty when nothing. `features` defaults to this machine's."""
        return self.note_hardware(cpu_features() if features is None else features)
