"""What a job was asked for, checked before it is accepted."""

import hashlib
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from services.optimization.advisor.goal import Goal
from services.optimization.evaluation.metrics import Metric
from services.optimization.recipe import Gates, Objective, Recipe
from services.repository.manifest import Frozen
from services.repository.references import check_channel, check_name

MAX_INLINE = 100_000


class Publication(Frozen):
    """Where an accepted candidate goes; an empty name means the source's."""

    name: Annotated[str, AfterValidator(lambda name: name and check_name(name))] = ""
    channels: tuple[Annotated[str, AfterValidator(check_channel)], ...] = ()


class DataSource(Frozen):
    """An uploaded dataset by reference, or texts brought along with a label for each or none."""

    dataset: str = ""
    texts: tuple[str, ...] = Field((), max_length=MAX_INLINE)
    labels: tuple[str, ...] = Field((), max_length=MAX_INLINE)
    label_column: str = Field("", max_length=128)
    max_rows: int = Field(0, ge=0)

    def __bool__(self) -> bool:
        return bool(self.dataset or self.texts)

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.dataset and self.texts:
            raise ValueError("a dataset or texts, not both")
        if self.labels and len(self.labels) != len(self.texts):
            raise ValueError(f"{len(self.labels)} labels for {len(self.texts)} texts")
        if self.dataset and self.labels:
            raise ValueError("labels of a dataset are a column of it: name it as label_column")
        return self


class Budget(Frozen):
    """What a job may use; 0 takes the server's default."""

    seconds: float = Field(0, ge=0)
    cores: int = Field(0, ge=0)
    memory_bytes: int = Field(0, ge=0)


class Spec(Frozen):
    """A job's request in plain values; empty `recipes` means the defaults for the source, no `metric` the task's own."""

    source: str
    recipes: tuple[Recipe, ...] = Field((), max_length=64)
    evaluation: DataSource = DataSource()
    calibration: DataSource = DataSource()
    training: DataSource = DataSource()
    gates: Gates = Gates()
    metric: Metric | None = None
    objective: Objective = Objective.THROUGHPUT
    publish: Publication = Publication()
    budget: Budget = Budget()
    seed: int = Field(0, ge=0)
    teacher: str = ""  # empty: the source
    goal: Goal | None = None  # instead of recipes

    @property
    def fingerprint(self) -> str:
        """Equal for equal requests."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
