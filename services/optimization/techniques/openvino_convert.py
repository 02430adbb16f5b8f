"""The work of `openvino`. Imports openvino."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openvino

from services import backends
from services.optimization import folder
from services.optimization.failures import BadModel, Toolchain
from services.optimization.techniques.casting import vocabulary
from services.optimization.techniques.export_onnx import ExportParameters, onnx_signature, write_onnx
from services.optimization.techniques.technique import Context, Outcome
from services.optimization.techniques.verification import (
    TOLERANCES,
    Answer,
    Arrays,
    backend_answer,
    module_answer,
    runnable,
    trials,
    verify,
)
from services.repository.manifest import Format, Signature

if TYPE_CHECKING:
    from services.optimization.techniques.openvino import OpenVinoParameters

FILE_NAME = "model.xml"


@contextlib.contextmanager
def _onnx_source(context: Context) -> Iterator[tuple[Path, Signature, Answer]]:
    """The source as an ONNX file, its signature, and what it answers. A Hugging Face folder takes the way of `export_onnx`.

    OpenVINO's own reader of torch modules traces them too; one way to a graph is one way to be wrong.
    """
    if context.signature.format is Format.ONNX:
        try:
            loaded = backends.load(context.source, context.signature, context.threads)
        except backends.LoadError as error:
            raise BadModel(str(error)) from error
        try:
            yield context.source / "model.onnx", context.signature, backend_answer(loaded, context.signature)
        finally:
            loaded.close()
        return
    from services.optimization.techniques.tracing import load_source

    module = load_source(context, "float32", attention="eager")
    path = context.scratch / "model.onnx"
    write_onnx(context, module, path, ExportParameters())
    yield path, onnx_signature(context.signature), module_answer(module)


def _convert(path: Path, target: Path, *, compress_to_fp16: bool) -> Any:
    """Writes model.xml and model.bin; answers the model. Raises Toolchain."""
    try:
        model = openvino.convert_model(str(path))
        openvino.save_model(model, str(target / FILE_NAME), compress_to_fp16=compress_to_fp16)
    except Exception as error:  # its own OpConversionFailure, RuntimeError and others
        raise Toolchain(f"openvino: {type(error).__name__}: {error}") from error
    return model


def _tried(signature: Signature, source: Path, answer: Answer) -> list[Arrays]:
    return runnable(answer, list(trials(signature, vocabulary(source))))


def convert(context: Context, parameters: "OpenVinoParameters") -> Outcome:
    """Raises BadModel, UnsupportedOperator or Toolchain."""
    context.progress(0.1, "reading the graph")
    with _onnx_source(context) as (path, source, answer):
        dtype = "bfloat16" if parameters.dtype == "bfloat16" else source.dtype
        signature = source.model_copy(update={"format": Format.OPENVINO, "dtype": dtype})
        context.progress(0.5, "converting")
        model = _convert(path, context.target, compress_to_fp16=parameters.compress_to_fp16)
        folder.copy_files(context.source, context.target, (*folder.TOKENIZER_FILES, *folder.DESCRIPTION_FILES))
        context.progress(0.7, "verifying on other shapes")
        tried = _tried(signature, context.source, answer)
        short = "float16" if parameters.compress_to_fp16 and dtype == "float32" else dtype
        off = verify("openvino", answer, context.target, signature, tried, threads=context.threads, tolerance=TOLERANCES[short])
    notes = {"operators": len(model.get_ops()), "compressed_to_fp16": parameters.compress_to_fp16, "largest_deviation": off}
    return Outcome(signature, notes | {"verified_shapes": len(tried)})
