"""What a job is asked to try and to hold: steps, recipes, gates, objective."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from pydantic import Field, ValidationError

from services.optimization.techniques import Parameters, Technique, find
from services.repository.manifest import Format, Frozen, Signature, Task


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
    """What a candidate must keep and bring, against the original, on this machine."""

    min_fidelity: float = Field(0.99, gt=0, le=1)
    min_gain: float = Field(1.05, ge=0, description="ratio; 0 switches the rule off")
    min_examples: int = Field(100, ge=1)


def parse_parameters(technique: Technique, step: Step, field: str) -> Parameters:
    """Raises ValueError naming the first parameter at fault, e.g. `recipes[0].steps[1].parameters.per_channel: …`."""
    try:
        return technique.parameters.model_validate(dict(step.parameters))
    except ValidationError as error:
        fault = error.errors()[0]
        path = ".".join([f"{field}.parameters", *map(str, fault["loc"])])
        raise ValueError(f"{path}: {fault['msg']}") from error


def _validate_step(step: Step, source: Format, calibrated: bool, field: str) -> Format:
    try:
        technique = find(step.technique)
    except KeyError as error:
        raise ValueError(f"{field}.technique: {error.args[0]}") from error
    parameters = parse_parameters(technique, step, field)
    if source not in technique.source_formats:
        wanted = " or ".join(technique.source_formats)
        raise ValueError(f"{field}.technique: {technique.name} takes a model in the format {wanted}; at this step it is {source}")
    if parameters.uses_calibration() and not calibrated:
        raise ValueError(f"{field}.technique: {technique.name} with these parameters needs calibration texts")
    return technique.target_format


def validate_recipe(recipe: Recipe, signature: Signature, *, calibrated: bool = True, field: str = "recipe") -> Format:
    """Checks techniques, parameters and the chain of formats; answers the format of the result.

    `calibrated` tells whether the job brings calibration texts. Raises ValueError whose text begins with the field at fault.
    """
    current = signature.format
    for index, step in enumerate(recipe.steps):
        current = _validate_step(step, current, calibrated, f"{field}.steps[{index}]")
    return current


def validate_recipes(recipes: Sequence[Recipe], signature: Signature, *, calibrated: bool = True) -> None:
    """`validate_recipe` for each, and their names are unique. Raises ValueError naming the field."""
    names: set[str] = set()
    for index, recipe in enumerate(recipes):
        if recipe.name in names:
            raise ValueError(f"recipes[{index}].name: {recipe.name!r} names an earlier recipe")
        names.add(recipe.name)
        validate_recipe(recipe, signature, calibrated=calibrated, field=f"recipes[{index}]")


def default_recipes(signature: Signature, *, calibrated: bool = True) -> tuple[Recipe, ...]:
    """Candidates worth trying on any processor, cheapest first.

    Which of them helps differs between machines; the evaluation tells. Without calibration texts INT8 is applied to every
    weight MatMul instead of searching which ones to keep in FP32.
    """
    quantize = Step(technique="dynamic_int8", parameters={} if calibrated else {"target_fidelity": None})
    if signature.format is Format.ONNX:
        return (Recipe(name="int8", steps=(quantize,)),)
    if signature.task is Task.TENSOR:
        return ()
    export = Step(technique="export_onnx")
    recipes = [Recipe(name="onnx", steps=(export,)), Recipe(name="onnx-int8", steps=(export, quantize))]
    if signature.dtype != "bfloat16":
        recipes.append(Recipe(name="bf16", steps=(Step(technique="bf16"),)))
    return tuple(recipes)
