"""ONNX or Hugging Face to OpenVINO's intermediate representation, for its CPU plug-in."""

from importlib.util import find_spec
from typing import Literal, cast

from pydantic import Field

from services.optimization.environment import has_bf16
from services.optimization.techniques.technique import EVERY_TASK, Context, Family, Outcome, Parameters, Technique
from services.repository.manifest import Format


class OpenVinoParameters(Parameters):
    compress_to_fp16: bool = Field(False, description="weights are stored in float16 and widened when the model is loaded: half the file")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="what products are computed in; bfloat16 is fast where the processor has it, and otherwise not used"
    )


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.openvino_convert import convert

    return convert(context, cast(OpenVinoParameters, context.parameters))


def _probe() -> str:
    return "" if find_spec("openvino") else "OpenVINO is not installed; the extra `openvino` brings it"


def _note_hardware(features: frozenset[str]) -> str:
    if has_bf16(features):
        return ""
    return "This processor has no bfloat16 arithmetic: dtype bfloat16 gains nothing here."


TECHNIQUE = Technique(
    name="openvino",
    version=1,
    family=Family.COMPILE,
    summary="Converts to OpenVINO's representation, compiled for the processor when it is loaded; any rows and lengths.",
    parameters=OpenVinoParameters,
    source_formats=(Format.HUGGINGFACE, Format.ONNX),
    target_format=Format.OPENVINO,
    tasks=EVERY_TASK,
    apply=_apply,
    note_hardware=_note_hardware,
    probe=_probe,
)
