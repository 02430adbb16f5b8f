"""Hugging Face folder to one ONNX file with pooling inside, checked against its source."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from services import backends
from services.optimization import folder
from services.optimization.failures import BadModel, Toolchain, UnsupportedOperator
from services.optimization.techniques.technique import Context, Outcome, Parameters, Technique
from services.repository.manifest import Format, Signature, Task, TensorSpec

# (rows, tokens) other than the traced example: one row, many rows, one token, longer than any example.
VERIFIED_SHAPES = ((1, 3), (3, 8), (5, 33), (16, 12), (2, 64))
TOLERANCE = 1e-3


class ExportParameters(Parameters):
    opset: int = Field(17, ge=14, le=20, description="ONNX operator set; 17 has LayerNormalization")
    optimize: bool = Field(
        False,
        description="fuse attention, layer norm and GELU with onnxruntime's transformers optimizer; "
        "measured slower than the plain graph on some processors and it keeps dynamic_int8 from seeing the fused weights",
    )


@contextlib.contextmanager
def _quiet_tracer() -> Iterator[None]:
    """The tracing exporter announces its retirement and every data-dependent branch; the verification below is what counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _example(rows: int, tokens: int, seed: int, vocabulary: int) -> dict[str, NDArray[np.int64]]:
    """Random ids; every row but the first is padded, each by another length."""
    ids = np.random.default_rng(seed).integers(0, vocabulary, (rows, tokens), np.int64)
    lengths = np.maximum(1, tokens - np.arange(rows) % tokens)
    return {"input_ids": ids, "attention_mask": (np.arange(tokens) < lengths[:, None]).astype(np.int64)}


def _trace(module: Any, path: Path, signature: Signature, opset: int) -> None:
    import torch

    arrays = _example(2, 7, 0, 100)
    arguments = (torch.from_numpy(arrays["input_ids"]), torch.from_numpy(arrays["attention_mask"]))
    output = signature.outputs[0].name
    axes = {name: {0: "rows", 1: "tokens"} for name in arrays} | {output: {0: "rows"}}
    try:
        with _quiet_tracer():
            # The dynamo exporter is the default now; measured: the same file is no faster, the attention pattern is lost
            # to fusion, and some opsets break quantize_dynamic.
            torch.onnx.export(
                module,
                arguments,
                str(path),
                dynamo=False,
                opset_version=opset,
                input_names=list(arrays),
                output_names=[output],
                dynamic_axes=axes,
            )
    except torch.onnx.errors.UnsupportedOperatorError as error:
        raise UnsupportedOperator(f"export_onnx: {error}") from error
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        raise Toolchain(f"export_onnx: {error}") from error


def _fuse(path: Path, fused: Path, config: Any) -> dict[str, Any]:
    """Answers how many operators of each kind were fused. Raises Toolchain when it fused none."""
    from onnxruntime.transformers import optimizer

    try:
        model = optimizer.optimize_model(
            str(path), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=0
        )
    except Exception as error:  # the optimizer raises whatever its pattern matchers raise
        raise Toolchain(f"export_onnx: fusing failed: {error}") from error
    counts = {name: count for name, count in model.get_fused_operator_statistics().items() if count}
    if not counts:
        raise Toolchain("export_onnx: optimize was asked for, and the graph holds no pattern that onnxruntime fuses")
    model.save_model_to_file(str(fused))
    return {"fused_operators": counts}


def _verify(module: Any, target: Path, signature: Signature, threads: int, vocabulary: int) -> float:
    """Largest relative deviation from the source over VERIFIED_SHAPES. Raises Toolchain when it is past TOLERANCE."""
    import torch

    try:
        exported = backends.load(target, signature, threads)
    except backends.LoadError as error:
        raise Toolchain(f"export_onnx: the exported model does not load: {error}") from error
    output, worst = signature.outputs[0].name, 0.0
    for seed, (rows, tokens) in enumerate(VERIFIED_SHAPES):
        arrays = _example(rows, tokens, seed, vocabulary)
        try:
            found = exported.run(arrays, [output])[output]
        except backends.RunError as error:
            raise Toolchain(f"export_onnx: the exported model fails on {rows}x{tokens}: {error}") from error
        with torch.inference_mode():
            wanted = module(*(torch.from_numpy(value) for value in arrays.values())).numpy()
        worst = max(worst, _deviation(found, wanted))
    exported.close()
    if worst > TOLERANCE:
        raise Toolchain(f"export_onnx: the exported model deviates from its source by {worst:.2g}; {TOLERANCE:g} is allowed")
    return worst


def _deviation(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))


def _target_signature(signature: Signature) -> Signature:
    pair = tuple(TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in ("input_ids", "attention_mask"))
    return signature.model_copy(update={"format": Format.ONNX, "inputs": pair, "dtype": "float32"})


def _load(source: Path, signature: Signature) -> Any:
    """FP32 whatever the source's dtype: the engine's CPU provider has no bfloat16 kernels. Raises BadModel."""
    from services.backends.torch import load_module

    try:
        # Eager attention traces to plain MatMul and Softmax, which are half the nodes of sdpa's trace and can be fused.
        return load_module(source, signature.model_copy(update={"dtype": "float32"}), attention="eager")
    except backends.LoadError as error:
        raise BadModel(str(error)) from error


def _apply(context: Context) -> Outcome:
    if context.signature.task is Task.TENSOR:
        raise UnsupportedOperator("export_onnx exports Hugging Face text models")
    parameters = cast(ExportParameters, context.parameters)
    signature = _target_signature(context.signature)
    module = _load(context.source, context.signature)
    config = module.model.config
    path = context.target / "model.onnx"
    raw = context.scratch / "raw.onnx" if parameters.optimize else path
    context.progress(0.2, "tracing")
    _trace(module, raw, signature, parameters.opset)
    notes: dict[str, Any] = {"opset": parameters.opset}
    if parameters.optimize:
        context.progress(0.6, "fusing")
        notes |= _fuse(raw, path, config)
    folder.copy_files(context.source, context.target, (*folder.TOKENIZER_FILES, *folder.DESCRIPTION_FILES))
    context.progress(0.7, "verifying on other shapes")
    notes["largest_deviation"] = _verify(module, context.target, signature, context.threads, config.vocab_size)
    return Outcome(signature, notes)


def _note_hardware(features: frozenset[str]) -> str:
    return ""


TECHNIQUE = Technique(
    name="export_onnx",
    version=1,
    summary="Exports the model with its pooling to one ONNX file for onnxruntime, verified against the source on other shapes.",
    parameters=ExportParameters,
    source_formats=(Format.HUGGINGFACE,),
    target_format=Format.ONNX,
    apply=_apply,
    note_hardware=_note_hardware,
)
