"""What a job was asked for, checked before it is accepted."""

import hashlib
from typing import Annotated

from pydantic import AfterValidator, Field

from services.optimization.recipe import Gates, Objective, Recipe
from services.repository.manifest import Frozen
from services.repository.references import check_channel, check_name


class Publication(Frozen):
    """Where an accepted candidate goes; an empty name means the source's."""

    name: Annotated[str, AfterValidator(lambda name: name and check_name(name))] = ""
    channels: tuple[Annotated[str, AfterValidator(check_channel)], ...] = ()


class Spec(Frozen):
    """A job's request in plain values; empty `recipes` means the defaults for the source."""

    source: str
    recipes: tuple[Recipe, ...] = Field((), max_length=64)
    evaluation_texts: tuple[str, ...] = Field((), max_length=100_000)
    calibration_texts: tuple[str, ...] = Field((), max_length=100_000)
    gates: Gates = Gates()
    objective: Objective = Objective.THROUGHPUT
    publish: Publication = Publication()
    seed: int = Field(0, ge=0)

    @property
    def fingerprint(self) -> str:
        """Equal for equal requests."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
