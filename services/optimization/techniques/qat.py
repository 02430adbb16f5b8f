"""Training that already computes in INT8, and ends in the quantized ONNX model that it simulated."""

from typing import Literal, cast

from pydantic import Field

from services.optimization.techniques.quantization.parameters import note_int8_hardware
from services.optimization.techniques.technique import EVERY_TASK, Context, Family, Outcome, Parameters, Technique
from services.optimization.training import LossParameters, TrainingParameters
from services.repository.manifest import Format, Task


class QatParameters(Parameters):
    scheme: Literal["dynamic", "static"] | None = Field(
        None,
        description="dynamic: each batch's own ranges; static: ranges that the training settled; "
        "null: static for convolutional nets, dynamic for others",
    )
    per_channel: bool = Field(True, description="one weight scale per output channel; per tensor loses much accuracy for no speed")
    reduce_range: bool | None = Field(
        None, description="7-bit weights, against saturation on processors without 8-bit dot products; null: by this processor"
    )
    exclude: tuple[str, ...] = Field((), max_length=64, description="glob patterns of module names that stay in FP32")
    quantize_embeddings: bool = Field(True, description="token tables, too: size, at a little accuracy")
    training: TrainingParameters = TrainingParameters(epochs=1, learning_rate=2e-5)
    losses: LossParameters = LossParameters()

    def uses_training(self) -> bool:
        return True


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.quantization.aware_training import train

    return train(context, cast(QatParameters, context.parameters))


TECHNIQUE = Technique(
    name="qat",
    version=1,
    family=Family.QUANTIZE,
    summary="Quantization-aware training: weights learn to live with INT8, then the model is exported and really quantized.",
    parameters=QatParameters,
    source_formats=(Format.HUGGINGFACE,),
    target_format=Format.ONNX,
    tasks=EVERY_TASK - {Task.TENSOR},
    apply=_apply,
    note_hardware=note_int8_hardware,
    assume_seconds=lambda megabytes, examples: 30 + 0.5 * megabytes + 0.001 * megabytes * examples,
)
