"""Weights in blocks of 4 or 8 bits, activations in FP32: the smallest file."""

from typing import Literal, cast

from pydantic import Field

from services.optimization.techniques.technique import EVERY_TASK, Context, Family, Outcome, Parameters, Technique
from services.repository.manifest import Format

PROBED = "onnx_ir"  # what the library's quantizer imports and its package does not require


class Int4Parameters(Parameters):
    bits: Literal[4, 8] = Field(4, description="per weight")
    block_size: Literal[32, 64, 128] = Field(32, description="weights that share a scale; larger: smaller file, less accurate")
    symmetric: bool = Field(False, description="no zero points: a little smaller, less accurate")
    accuracy_level: Literal[0, 1, 2, 3, 4] = Field(
        4, description="what the products are computed in: 1 FP32, 2 FP16, 3 BF16, 4 INT8 with INT32 sums; 0: the engine decides"
    )
    quantize_embeddings: bool = Field(True, description="tables that are looked up, too; raises the operator set to 21")
    exclude: tuple[str, ...] = Field((), max_length=64, description="glob patterns of node names that stay in FP32")


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.quantization.blockwise import quantize

    return quantize(context, cast(Int4Parameters, context.parameters))


def _note_hardware(_: frozenset[str]) -> str:
    return "On processors, 4-bit weights are unpacked for every product: the file gets small and batches most likely slower, not faster."


def _probe() -> str:
    from importlib.util import find_spec

    return "" if find_spec(PROBED) else f"the package {PROBED}, which onnxruntime's 4-bit quantizer imports, is not installed"


TECHNIQUE = Technique(
    name="int4_weight_only",
    version=1,
    family=Family.QUANTIZE,
    summary="Stores weights in blocks of 4 (or 8) bits with a scale each; a tool for size, rarely for speed.",
    parameters=Int4Parameters,
    source_formats=(Format.ONNX,),
    target_format=Format.ONNX,
    tasks=EVERY_TASK,
    apply=_apply,
    note_hardware=_note_hardware,
    probe=_probe,
)
