"""bfloat16 weights: half the bytes of FP32 with its range, and 8 bits of precision."""

from services.optimization.environment import has_bf16
from services.optimization.techniques.technique import EVERY_TASK, Context, Family, Outcome, Parameters, Technique
from services.repository.manifest import Format, Task

DTYPE = "bfloat16"


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.casting import cast

    return cast("bf16", context, DTYPE)


def _note_hardware(features: frozenset[str]) -> str:
    if has_bf16(features):
        return ""
    return "This processor has no bfloat16 arithmetic and emulates it: the model gets smaller and most likely slower."


TECHNIQUE = Technique(
    name="bf16",
    version=2,
    family=Family.QUANTIZE,
    summary="Stores and computes weights in bfloat16: half the size, near-equal answers; faster where the processor has bfloat16 units.",
    parameters=Parameters,
    source_formats=(Format.HUGGINGFACE,),  # onnxruntime's CPU provider has no bfloat16 kernels
    target_format=None,
    tasks=EVERY_TASK - {Task.TENSOR},
    apply=_apply,
    note_hardware=_note_hardware,
)
