"""A student with fewer layers or smaller widths, initialised from its source and taught by the job's teacher."""

from typing import Literal, Self, cast

from pydantic import Field, model_validator

from services.optimization.failures import BadModel
from services.optimization.techniques.technique import EVERY_TASK, Context, Family, Outcome, Parameters, Technique
from services.optimization.training import LossParameters, TrainingParameters, fit
from services.repository.manifest import Format, Task


class DistillParameters(Parameters):
    """What is null stays as it is in the source; with everything null the source itself is taught, e.g. to heal a pruned model."""

    layers: int | None = Field(None, ge=1, le=1024, description="layers of the student")
    hidden_size: int | None = Field(None, ge=1, le=1 << 20, description="width between layers; an embedding's cannot change")
    heads: int | None = Field(None, ge=1, le=4096, description="attention heads; they must divide the hidden size")
    intermediate_size: int | None = Field(None, ge=1, le=1 << 20, description="feed-forward neurons of each layer")
    layer_choice: Literal["spread", "first", "last"] = Field("spread", description="which layers of the source the student starts from")
    init: Literal["teacher", "random"] = Field("teacher", description="start from the source's weights, the most important ones, or anew")
    training: TrainingParameters | None = Field(TrainingParameters(), description="null: none; its speed and size are shown so")
    losses: LossParameters = LossParameters()

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size and self.heads and self.hidden_size % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide the hidden size {self.hidden_size}")
        return self

    def uses_training(self) -> bool:
        return self.training is not None


def _apply(context: Context) -> Outcome:
    from services import backends
    from services.backends import shapes
    from services.backends.torch import load_module
    from services.optimization.techniques import saving, students

    parameters = cast(DistillParameters, context.parameters)
    try:
        # In FP32 whatever the source's dtype: small updates vanish in less. `save` casts back.
        student = load_module(context.source, context.signature.model_copy(update={"dtype": "float32"}))
    except backends.LoadError as error:
        raise BadModel(str(error)) from error
    context.progress(0.0, "initialising the student")
    made = students.make(student, context.signature, parameters, context.seed, is_pruned=shapes.has_shapes(context.source))
    if parameters.training is not None:
        made |= fit(student, context, parameters.training, parameters.losses, stage="distill", share=(0.02, 0.97)).notes()
    context.progress(0.97, "writing the student")
    saving.save(student, context.source, context.target, context.signature)
    return Outcome(context.signature, made)


TECHNIQUE = Technique(
    name="distill",
    version=1,
    family=Family.DISTILL,
    summary="Trains a smaller student, initialised from its source, to answer as the original does, with labels or without.",
    parameters=DistillParameters,
    source_formats=(Format.HUGGINGFACE,),
    target_format=Format.HUGGINGFACE,
    tasks=EVERY_TASK - {Task.TENSOR},
    apply=_apply,
    assume_seconds=lambda megabytes, examples: 5 + 0.001 * megabytes * examples,
)
