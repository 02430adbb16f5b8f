"""Weights stored, and products computed, in a shorter floating point: the work of `bf16` and `fp16`. Imports torch or onnx."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services import backends
from services.optimization import folder
from services.optimization.failures import BadModel, Toolchain, UnsupportedOperator
from services.optimization.techniques.technique import Context, Outcome
from services.optimization.techniques.verification import backend_answer, runnable, trials, verify
from services.repository.manifest import Format, Signature

# What the precision costs is for the gates to judge; past half of the largest value nothing of an answer is left.
TOLERANCE = 0.5
_WEIGHTS = ".safetensors"
_ONNX = "model.onnx"
# What was quantized computes on integers, and its scales are FP32 by definition.
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits"})


def _cast_weights(technique: str, source: Path, target: Path, dtype: Any) -> dict[str, int]:
    """One safetensors file to another; integer tensors stay. Answers counts. Raises UnsupportedOperator for a weight out of range."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(source)
    cast = {name: value.to(dtype) for name, value in tensors.items() if value.is_floating_point()}
    for name, value in cast.items():
        if not value.isfinite().all() and tensors[name].isfinite().all():
            raise UnsupportedOperator(f"{technique}: {name!r} holds values past what {dtype} can: {tensors[name].abs().max().item():.3g}")
    save_file(tensors | cast, target, metadata={"format": "pt"})
    return {"cast_tensors": len(cast), "kept_tensors": len(tensors) - len(cast)}


def _write_config(source: Path, target: Path, dtype: str) -> None:
    config = json.loads(source.read_text())
    config.pop("torch_dtype", None)  # the older name of `dtype`; one of them would contradict the other
    target.write_text(json.dumps(config | {"dtype": dtype}, indent=2, sort_keys=True))


def _cast_folder(technique: str, context: Context, dtype: str) -> dict[str, int]:
    import torch

    weights = [name for name in folder.files(context.source) if name.endswith(_WEIGHTS)]
    notes = {"cast_tensors": 0, "kept_tensors": 0}
    for index, name in enumerate(weights):
        context.progress(0.6 * index / len(weights), f"casting {name}")
        counts = _cast_weights(technique, context.source / name, context.target / name, getattr(torch, dtype))
        notes = {key: notes[key] + counts[key] for key in notes}
    folder.copy_files(context.source, context.target, (name for name in folder.files(context.source) if name not in weights))
    _write_config(context.source / "config.json", context.target / "config.json", dtype)
    return notes


def _cast_graph(technique: str, context: Context) -> dict[str, int]:
    """FP16 inside, FP32 at its doors: callers see no difference. Raises UnsupportedOperator or Toolchain."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(context.source / _ONNX)
    if quantized := sorted({node.op_type for node in model.graph.node} & _QUANTIZED):
        raise UnsupportedOperator(
            f"{technique}: the graph is quantized already ({', '.join(quantized)}); cast before quantizing, or not at all"
        )
    before = sum(value.data_type == onnx.TensorProto.FLOAT for value in model.graph.initializer)
    context.progress(0.2, "casting the graph")
    try:
        cast = convert_float_to_float16(model, keep_io_types=True)
        onnx.save(cast, context.target / _ONNX)
    except Exception as error:  # ValueError, and what onnx's shape inference raises
        raise Toolchain(f"{technique}: {type(error).__name__}: {error}") from error
    kept = sum(value.data_type == onnx.TensorProto.FLOAT for value in cast.graph.initializer)
    folder.copy_files(context.source, context.target, (name for name in folder.files(context.source) if name != _ONNX))
    return {"cast_tensors": before - kept, "kept_tensors": kept}


def _verify(technique: str, context: Context, signature: Signature, notes: Mapping[str, int]) -> Outcome:
    """An answer that is not finite is refused here: sums past FP16's 65504 become infinite."""
    try:
        source = backends.load(context.source, context.signature, context.threads)
    except backends.LoadError as error:
        raise BadModel(str(error)) from error
    try:
        answer = backend_answer(source, context.signature)
        tried = runnable(answer, list(trials(signature, vocabulary(context.source))))
        off = verify(technique, answer, context.target, signature, tried, threads=context.threads, tolerance=TOLERANCE)
    finally:
        source.close()
    return Outcome(signature, {**notes, "largest_deviation": off, "verified_shapes": len(tried)})


def vocabulary(source: Path) -> int:
    """Rows of the token table by the folder's config.json; 2 where it tells none: ids 0 and 1 are in any table."""
    path = source / "config.json"
    return int(json.loads(path.read_text()).get("vocab_size") or 2) if path.exists() else 2


def cast(technique: str, context: Context, dtype: str) -> Outcome:
    """Raises BadModel, UnsupportedOperator or Toolchain."""
    notes = _cast_graph(technique, context) if context.signature.format is Format.ONNX else _cast_folder(technique, context, dtype)
    context.progress(0.7, "verifying")
    return _verify(technique, context, context.signature.model_copy(update={"dtype": dtype}), notes)
