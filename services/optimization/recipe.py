"""What a job is asked to try and to hold: steps, recipes, gates, objective."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from pydantic import Field, ValidationError

from services.optimization.evaluation.metrics import Metric
from services.optimization.techniques import Parameters, Technique, find
from services.repository.manifest import Format, Frozen, Signature, Task

DEFAULT_MIN_FIDELITY = 0.99
DEFAULT_MAX_LOSS = 0.01
DEFAULT_MAX_RELATIVE_LOSS = 0.05


class Objective(StrEnum):
    """What decides among accepted candidates."""

    THROUGHPUT = "THROUGHPUT"
    LATENCY = "LATENCY"
    SIZE = "SIZE"


class Step(Frozen):
    technique: str
    parameters: Mapping[str, Any] = {}


class Recipe(Frozen):
    """Steps carried out in order, each on the model that the one before made."""

    name: str = Field(pattern="^[A-Za-z0-9_-]{1,64}$")
    steps: tuple[Step, ...] = Field(min_length=1, max_length=16)


class Gates(Frozen):
    """What a candidate must keep and bring, against the original, on this machine. None: by the metric, see `for_metric`."""

    min_fidelity: float | None = Field(None, gt=0, le=1)
    max_loss: float | None = Field(None, ge=0, description="of the metric; a share of the original's for perplexity")
    min_gain: float = Field(1.05, ge=0, description="ratio; 0 switches the rule off")
    min_examples: int = Field(100, ge=1)

    def for_metric(self, metric: Metric) -> Self:
        """With every default that the metric decides. A rule that stays None is not looked at."""
        if metric is Metric.FIDELITY:
            return self.model_copy(update={"min_fidelity": self.min_fidelity or DEFAULT_MIN_FIDELITY, "max_loss": None})
        default = DEFAULT_MAX_RELATIVE_LOSS if metric is Metric.PERPLEXITY else DEFAULT_MAX_LOSS
        return self.model_copy(update={"max_loss": default if self.max_loss is None else self.max_loss})


@dataclass(frozen=True)
class Kinds:
    """Which kinds of examples a job brings."""

    calibration: bool = True
    training: bool = True


def parse_parameters(technique: Technique, step: Step, field: str) -> Parameters:
    """Raises ValueError naming the first parameter at fault, e.g. `recipes[0].steps[1].parameters.per_channel: …`."""
    try:
        return technique.parameters.model_validate(dict(step.parameters))
    except ValidationError as error:
        fault = error.errors()[0]
        path = ".".join([f"{field}.parameters", *map(str, fault["loc"])])
        raise ValueError(f"{path}: {fault['msg']}") from error


def _validate_step(step: Step, signature: Signature, source: Format, kinds: Kinds, field: str) -> Format:
    try:
        technique = find(step.technique)
    except KeyError as error:
        raise ValueError(f"{field}.technique: {error.args[0]}") from error
    parameters = parse_parameters(technique, step, field)
    for fault in _faults(technique, parameters, signature.task, source, kinds):
        raise ValueError(f"{field}.technique: {technique.name} {fault}")
    return technique.target_of(source)


def _faults(technique: Technique, parameters: Parameters, task: Task, source: Format, kinds: Kinds) -> Iterator[str]:
    """Why the technique cannot be applied, each as the end of a sentence that begins with its name."""
    if task not in technique.tasks:
        yield f"does not treat {task} models; it treats {', '.join(sorted(technique.tasks))}"
    if source not in technique.source_formats:
        yield f"takes a model in the format {' or '.join(technique.source_formats)}; at this step it is {source}"
    if unavailable := technique.probe():
        yield f"is not available here: {unavailable}"
    if parameters.uses_calibration() and not (kinds.calibration or kinds.training):
        yield "with these parameters needs calibration examples"
    if parameters.uses_training() and not kinds.training:
        yield "with these parameters needs training examples"


def validate_recipe(recipe: Recipe, signature: Signature, kinds: Kinds = Kinds(), *, field: str = "recipe") -> Format:
    """Checks techniques, parameters and the chain of formats; answers the format of the result.

    Raises ValueError whose text begins with the field at fault.
    """
    current = signature.format
    for index, step in enumerate(recipe.steps):
        current = _validate_step(step, signature, current, kinds, f"{field}.steps[{index}]")
    return current


def validate_recipes(recipes: Sequence[Recipe], signature: Signature, kinds: Kinds = Kinds()) -> None:
    """`validate_recipe` for each, and their names are unique. Raises ValueError naming the field."""
    names: set[str] = set()
    for index, recipe in enumerate(recipes):
        if recipe.name in names:
            raise ValueError(f"recipes[{index}].name: {recipe.name!r} names an earlier recipe")
        names.add(recipe.name)
        validate_recipe(recipe, signature, kinds, field=f"recipes[{index}]")


def default_recipes(signature: Signature, kinds: Kinds = Kinds()) -> tuple[Recipe, ...]:
    """Candidates worth trying on any processor, cheapest first.

    Which of them helps differs between machines; the evaluation tells. Without calibration examples INT8 is applied to every
    weight MatMul instead of searching which ones to keep in FP32.
    """
    calibrated = kinds.calibration or kinds.training
    quantize = Step(technique="dynamic_int8", parameters={} if calibrated else {"target_fidelity": None})
    if signature.format is Format.ONNX:
        return (Recipe(name="int8", steps=(quantize,)),)
    if signature.format is not Format.HUGGINGFACE:
        return ()
    export = Step(technique="export_onnx")
    recipes = [Recipe(name="onnx", steps=(export,)), Recipe(name="onnx-int8", steps=(export, quantize))]
    if signature.dtype != "bfloat16":
        recipes.append(Recipe(name="bf16", steps=(Step(technique="bf16"),)))
    return tuple(recipes)
