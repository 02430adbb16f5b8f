"""INT8 weights and activations with ranges fixed beforehand, from calibration examples."""

from typing import cast

from pydantic import Field

from services.optimization.techniques.quantization.parameters import Int8Parameters, Method, note_int8_hardware
from services.optimization.techniques.technique import EVERY_TASK, Context, Family, Outcome, Technique
from services.repository.manifest import Format


class StaticInt8Parameters(Int8Parameters):
    calibration: Method = Field(
        Method.MINMAX,
        description="how ranges are taken: minmax keeps outliers, entropy and percentile clip them (which hurts where outliers matter, "
        "as in transformers)",
    )
    percentile: float = Field(99.99, ge=90, le=100, description="share of an activation's values inside its range, in percent")
    target_fidelity: float | None = Field(
        0.99, gt=0, le=1, description="on the calibration examples; the worst layers stay in FP32 until it is reached; null: no search"
    )

    def uses_calibration(self) -> bool:
        return True


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.quantization.static import quantize

    return quantize(context, cast(StaticInt8Parameters, context.parameters))


TECHNIQUE = Technique(
    name="static_int8",
    version=1,
    family=Family.QUANTIZE,
    summary="Quantizes weights and activations to INT8 with ranges from calibration; the usual choice for convolutional networks.",
    parameters=StaticInt8Parameters,
    source_formats=(Format.ONNX,),
    target_format=Format.ONNX,
    tasks=EVERY_TASK,
    apply=_apply,
    note_hardware=note_int8_hardware,
    assume_seconds=lambda megabytes, _: 5 + 0.5 * megabytes,
)
