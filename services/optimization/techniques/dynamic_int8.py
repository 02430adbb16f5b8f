"""INT8 weights and activations quantized as they flow, keeping in FP32 the few layers that measure worst."""

from typing import cast

from services.optimization.techniques.quantization.parameters import Int8Parameters, note_int8_hardware
from services.optimization.techniques.technique import EVERY_TASK, Context, Family, Outcome, Technique
from services.repository.manifest import Format


class DynamicInt8Parameters(Int8Parameters):
    def uses_calibration(self) -> bool:
        return self.target_fidelity is not None


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.quantization.dynamic import quantize

    return quantize(context, cast(DynamicInt8Parameters, context.parameters))


TECHNIQUE = Technique(
    name="dynamic_int8",
    version=2,
    family=Family.QUANTIZE,
    summary="Quantizes weights to INT8 per channel and activations on the fly; layers that lose most stay in FP32, found by measuring.",
    parameters=DynamicInt8Parameters,
    source_formats=(Format.ONNX,),
    target_format=Format.ONNX,
    tasks=EVERY_TASK,
    apply=_apply,
    note_hardware=note_int8_hardware,
)
