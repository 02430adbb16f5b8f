"""INT8 by torch itself: weights quantized once, activations as they flow, in a frozen TorchScript archive."""

from typing import cast

from pydantic import Field

from services.optimization.environment import has_int8_dot
from services.optimization.techniques.probing import has_submodule
from services.optimization.techniques.technique import EVERY_TASK, Context, Family, Outcome, Parameters, Technique
from services.repository.manifest import Format, Task


class TorchDynamicInt8Parameters(Parameters):
    per_channel: bool = Field(True, description="one weight scale per output channel; per tensor, torch's own default, loses much accuracy")
    reduce_range: bool | None = Field(
        None,
        description="7-bit activations, against saturation on processors without 8-bit dot products; "
        "null: 7 bits on such a processor, 8 on others (torch's own default is 7 everywhere)",
    )
    exclude: tuple[str, ...] = Field(
        (), max_length=64, description="glob patterns of layer names, as model.encoder.layer.0.*, that stay in FP32"
    )
    quantize_embeddings: bool = Field(
        True, description="tables that are looked up, too, in 8 bits with a scale per row: size, at little accuracy"
    )


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.torch_int8 import quantize

    return quantize(context, cast(TorchDynamicInt8Parameters, context.parameters))


def _probe() -> str:
    """torchao's INT8 is no substitute: its tensor subclasses cannot be traced."""
    if not has_submodule("torch", "ao", "quantization"):
        return "this torch has no torch.ao.quantization any more; dynamic_int8 quantizes the ONNX export instead"
    return "" if has_submodule("torch", "jit") else "this torch has no TorchScript any more"


def _note_hardware(features: frozenset[str]) -> str:
    if has_int8_dot(features):
        return ""
    return "This processor has no 8-bit dot product (VNNI, AMX): 8-bit activations would saturate, and INT8 gains less speed than size."


TECHNIQUE = Technique(
    name="torch_dynamic_int8",
    version=1,
    family=Family.QUANTIZE,
    summary="Quantizes linear layers to INT8 with torch, activations on the fly, and freezes the result into a TorchScript archive.",
    parameters=TorchDynamicInt8Parameters,
    source_formats=(Format.HUGGINGFACE,),
    target_format=Format.TORCHSCRIPT,
    tasks=EVERY_TASK - {Task.TENSOR},
    apply=_apply,
    note_hardware=_note_hardware,
    probe=_probe,
)
