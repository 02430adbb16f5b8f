"""float16 weights: half the bytes of FP32 with 11 bits of precision, and nothing past 65504."""

from services.optimization.environment import has_fp16
from services.optimization.techniques.technique import EVERY_TASK, Context, Family, Outcome, Parameters, Technique
from services.repository.manifest import Format

DTYPE = "float16"


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.casting import cast

    return cast("fp16", context, DTYPE)


def _note_hardware(features: frozenset[str]) -> str:
    if has_fp16(features):
        return ""
    return "This processor has no float16 arithmetic: the model gets smaller, and slower by the casts."


TECHNIQUE = Technique(
    name="fp16",
    version=1,
    family=Family.QUANTIZE,
    summary="Stores and computes weights in float16: half the size, near-equal answers; on most CPUs a tool for size, not for speed.",
    parameters=Parameters,
    source_formats=(Format.HUGGINGFACE, Format.ONNX),
    target_format=None,
    tasks=EVERY_TASK,
    apply=_apply,
    note_hardware=_note_hardware,
)
