"""Hugging Face folder to one ONNX file with pooling inside, checked against its source on other shapes."""

from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field

from services.optimization import folder
from services.optimization.techniques.technique import EVERY_TASK, Context, Family, Outcome, Parameters, Technique
from services.optimization.techniques.verification import TOLERANCES, module_answer, trials, verify
from services.repository.manifest import Format, Signature, Task, TensorSpec

FILE_NAME = "model.onnx"


class ExportParameters(Parameters):
    opset: int = Field(17, ge=14, le=20, description="ONNX operator set; 17 has LayerNormalization")
    exporter: Literal["torchscript", "dynamo"] = Field(
        "torchscript",
        description="by tracing, whose graph the optimizer and dynamic_int8 read best and which torch will remove one day, "
        "or by torch.export; where one is absent or fails, the other is taken and the report says so",
    )
    optimize: bool = Field(
        False,
        description="fuse attention, layer norm and GELU with onnxruntime's transformers optimizer; "
        "measured slower than the plain graph on some processors and it keeps dynamic_int8 from seeing the fused weights",
    )


def onnx_signature(signature: Signature) -> Signature:
    """What the exported file answers: always FP32, and a pair of inputs for texts, since token types are zeros inside."""
    inputs = signature.inputs
    if signature.task.takes_text:
        inputs = tuple(TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in ("input_ids", "attention_mask"))
    return signature.model_copy(update={"format": Format.ONNX, "inputs": inputs, "dtype": "float32"})


def write_onnx(context: Context, module: Any, path: Path, parameters: ExportParameters) -> dict[str, Any]:
    """Exports `module` to `path`, fused where the parameters say so; answers notes. Raises UnsupportedOperator or Toolchain."""
    from services.optimization.techniques import onnx_exporters

    raw = context.scratch / "raw.onnx" if parameters.optimize else path
    asked = onnx_exporters.Exporter(parameters.exporter)
    notes: dict[str, Any] = {"opset": parameters.opset}
    notes |= onnx_exporters.export(module, raw, onnx_signature(context.signature), parameters.opset, asked)
    if parameters.optimize:
        from services.optimization.techniques.onnx_fusion import fuse

        context.progress(0.6, "fusing")
        notes["fused_operators"] = fuse(raw, path, module.model.config)
    return notes


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.tracing import load_source, vocabulary

    signature = onnx_signature(context.signature)
    # FP32 whatever the source's dtype: the engine's CPU provider has no bfloat16 kernels. Eager attention traces to plain
    # MatMul and Softmax, which are half the nodes of sdpa's trace and can be fused.
    module = load_source(context, "float32", attention="eager")
    context.progress(0.2, "exporting")
    notes = write_onnx(context, module, context.target / FILE_NAME, cast(ExportParameters, context.parameters))
    folder.copy_files(context.source, context.target, (*folder.TOKENIZER_FILES, *folder.DESCRIPTION_FILES))
    context.progress(0.7, "verifying on other shapes")
    tried = list(trials(signature, vocabulary(module)))
    notes["largest_deviation"] = verify(
        "export_onnx", module_answer(module), context.target, signature, tried, threads=context.threads, tolerance=TOLERANCES["float32"]
    )
    return Outcome(signature, notes | {"verified_shapes": len(tried)})


TECHNIQUE = Technique(
    name="export_onnx",
    version=2,
    family=Family.EXPORT,
    summary="Exports the model with its pooling to one ONNX file for onnxruntime, verified against the source on other shapes.",
    parameters=ExportParameters,
    source_formats=(Format.HUGGINGFACE,),
    target_format=Format.ONNX,
    tasks=EVERY_TASK - {Task.TENSOR},
    apply=_apply,
)
