"""Structured pruning: heads, feed-forward neurons, hidden size, layers and channels go, and tensors really get smaller.

Declaration and parameters are here and cost nothing to import; the work is in `pruning.structured`.
"""

from typing import Literal, Self, cast

from pydantic import Field, model_validator

from services.optimization.techniques.technique import Context, Family, Outcome, Parameters, Technique
from services.optimization.training import LossParameters, TrainingParameters
from services.repository.manifest import Format, Task

KINDS = ("layers", "heads", "ffn", "hidden", "channels")  # in the order of cutting: what is dropped whole need not be cut


class PruneParameters(Parameters):
    """Without any ratio, `DEFAULT_RATIO` of a transformer's heads and feed-forward neurons, or of a convolutional net's channels."""

    heads: float = Field(0, ge=0, lt=1, description="share of each layer's attention heads that go")
    ffn: float = Field(0, ge=0, lt=1, description="share of each layer's feed-forward neurons that go")
    hidden: float = Field(0, ge=0, lt=1, description="share of the hidden size that goes, the same positions everywhere")
    channels: float = Field(0, ge=0, lt=1, description="share of the convolutions' output channels that go")
    layers: float = Field(0, ge=0, le=1000, description="whole layers that go: a count from 1 on, a share below")
    importance: Literal["l1", "l2", "taylor"] = Field(
        "l1", description="norm of the weights, or the loss's first-order change without them"
    )
    importance_examples: int = Field(256, ge=1, le=100_000, description="training examples that `taylor` looks at")
    scope: Literal["per_layer", "global"] = Field(
        "per_layer", description="rank heads, neurons and channels within each layer, or among all layers, where one at least stays in each"
    )
    round_to: int = Field(8, ge=1, le=256, description="hidden size and feed-forward neurons stay multiples of it, as kernels like them")
    iterations: int = Field(1, ge=1, le=20, description="1: one shot; more: as many smaller cuts with a recovery after each")
    recovery: TrainingParameters | None = Field(
        TrainingParameters(), description="training after each cut against the job's original; null: none"
    )
    losses: LossParameters = Field(LossParameters(), description="what the recovery minimises")

    @property
    def asks(self) -> bool:
        """Whether any ratio was told."""
        return bool(self.model_fields_set & set(KINDS))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.asks and not any(getattr(self, kind) for kind in KINDS):
            raise ValueError(f"{', '.join(KINDS)} are all 0: nothing would be pruned")
        if self.layers >= 1 and self.layers != int(self.layers):
            raise ValueError(f"layers: {self.layers:g} is neither a count nor a share below 1")
        if self.iterations > 1 and self.recovery is None:
            raise ValueError("iterations: several cuts without a recovery in between are one cut; recovery is null")
        return self

    def uses_training(self) -> bool:
        return self.recovery is not None or self.importance == "taylor"


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.pruning.structured import prune

    return prune(context, cast(PruneParameters, context.parameters))


TECHNIQUE = Technique(
    name="prune",
    version=1,
    family=Family.PRUNE,
    summary="Cuts out the heads, neurons, hidden positions, layers or channels that matter least, and trains the rest to recover.",
    parameters=PruneParameters,
    source_formats=(Format.HUGGINGFACE,),
    target_format=Format.HUGGINGFACE,
    tasks=frozenset(Task) - {Task.TENSOR},
    apply=_apply,
    assume_seconds=lambda megabytes, examples: 10 + 0.002 * megabytes * examples,
)
