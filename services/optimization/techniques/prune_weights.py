"""Unstructured pruning: single weights become zero, anywhere or N of every M.

Declaration and parameters are here and cost nothing to import; the work is in `pruning.unstructured`.
"""

from typing import Literal, cast

from pydantic import Field

from services.optimization.techniques.technique import Context, Family, Outcome, Parameters, Technique
from services.optimization.training import LossParameters, TrainingParameters
from services.repository.manifest import Format, Task

Pattern = Literal["unstructured", "2:4", "1:4", "4:8"]


class PruneWeightsParameters(Parameters):
    pattern: Pattern = Field("unstructured", description="N:M keeps N weights of every M along a layer's inputs; unstructured: any may go")
    sparsity: float = Field(0.5, gt=0, lt=1, description="share of the weights that become zero; N:M tells its own")
    scope: Literal["per_layer", "global"] = Field(
        "per_layer", description="unstructured: rank weights by magnitude within each layer, or among all layers"
    )
    exclude: tuple[str, ...] = Field((), max_length=64, description="glob patterns of module paths whose weights all stay")
    recovery: TrainingParameters | None = Field(TrainingParameters(), description="training under the fixed zeros; null: none")
    losses: LossParameters = Field(LossParameters(), description="what the recovery minimises")

    def uses_training(self) -> bool:
        return self.recovery is not None


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.pruning.unstructured import prune

    return prune(context, cast(PruneWeightsParameters, context.parameters))


def _note_hardware(_: frozenset[str]) -> str:
    return "Processors multiply zeros as fast as any number: sparse weights gain no speed here, and size only once the file is compressed."


TECHNIQUE = Technique(
    name="prune_weights",
    version=1,
    family=Family.PRUNE,
    summary="Sets the smallest weights to zero, anywhere or all but N of M, and trains the rest; for compressed files and sparse kernels.",
    parameters=PruneWeightsParameters,
    source_formats=(Format.HUGGINGFACE,),
    target_format=Format.HUGGINGFACE,
    tasks=frozenset(Task) - {Task.TENSOR},
    apply=_apply,
    note_hardware=_note_hardware,
    assume_seconds=lambda megabytes, examples: 10 + 0.002 * megabytes * examples,
)
