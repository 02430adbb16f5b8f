"""INT8 weights and activations quantized as they flow, keeping in FP32 the few products that measure worst.

Declaration and parameters are here and cost nothing to import; the work is in `int8_search`.
"""

from typing import cast

from pydantic import Field

from services.optimization.environment import has_int8_dot
from services.optimization.techniques.technique import Context, Outcome, Parameters, Technique
from services.repository.manifest import Format


class DynamicInt8Parameters(Parameters):
    per_channel: bool = Field(True, description="one weight scale per output channel; per tensor loses much accuracy for no speed")
    reduce_range: bool | None = Field(
        None,
        description="7-bit weights, against saturation on processors without 8-bit dot products; "
        "null: both are measured on such a processor, 8 bits are taken on others",
    )
    target_fidelity: float | None = Field(
        0.993, gt=0, le=1, description="on the calibration texts; the worst products stay in FP32 until it is reached; null: no search"
    )
    max_excluded_share: float = Field(0.25, ge=0, le=1, description="largest share of the weight products that the search may keep in FP32")
    exclude: tuple[str, ...] = Field((), max_length=64, description="glob patterns of node names that stay in FP32 in any case")
    quantize_embeddings: bool = Field(True, description="tables that are looked up, too: size, at a little accuracy")

    def uses_calibration(self) -> bool:
        return self.target_fidelity is not None


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.int8_search import quantize

    return quantize(context, cast(DynamicInt8Parameters, context.parameters))


def _note_hardware(features: frozenset[str]) -> str:
    if has_int8_dot(features):
        return ""
    return "This processor has no 8-bit dot product (VNNI, AMX): INT8 gains less speed than its size suggests."


TECHNIQUE = Technique(
    name="dynamic_int8",
    version=1,
    summary="Quantizes weights to INT8 per channel and activations on the fly; nodes that lose most stay in FP32, found by measuring.",
    parameters=DynamicInt8Parameters,
    source_formats=(Format.ONNX,),
    target_format=Format.ONNX,
    apply=_apply,
    note_hardware=_note_hardware,
)
