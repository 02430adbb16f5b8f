"""Blockwise weight-only quantization by onnxruntime's MatMulNBits and GatherBlockQuantized."""

import logging
from typing import TYPE_CHECKING, Any

import onnx

from services.optimization import folder
from services.optimization.failures import Toolchain, UnsupportedOperator
from services.optimization.techniques.quantization import graph
from services.optimization.techniques.quantization.probe import run_once
from services.optimization.techniques.technique import Context, Outcome

if TYPE_CHECKING:
    from services.optimization.techniques.int4_weight_only import Int4Parameters

TABLE_OPSET = 21  # the quantizer writes it down for tables of 4 bits, without converting the rest of the graph
PRODUCT, TABLE = "MatMulNBits", "GatherBlockQuantized"


def _write(model: Any, target: str, parameters: "Int4Parameters", excluded: list[str]) -> None:
    """Raises Toolchain."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.ERROR)  # it tells of every node and of the raised IR version
    op_types = ("MatMul", "Gather") if parameters.quantize_embeddings else ("MatMul",)
    config = DefaultWeightOnlyQuantConfig(
        block_size=parameters.block_size,
        is_symmetric=parameters.symmetric,
        accuracy_level=parameters.accuracy_level,
        bits=parameters.bits,
        op_types_to_quantize=op_types,
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )
    try:
        quantizer = MatMulNBitsQuantizer(model, algo_config=config, nodes_to_exclude=excluded)
        quantizer.process()
        quantizer.model.save_model_to_file(target, False)
    except Exception as error:  # the library raises bare classes of every kind
        raise Toolchain(f"int4_weight_only: {error}") from error


def _count(path: str) -> dict[str, int]:
    operators = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    return {name: operators.count(name) for name in (PRODUCT, TABLE)}


def quantize(context: Context, parameters: "Int4Parameters") -> Outcome:
    """Raises UnsupportedOperator where the graph holds no matrix to quantize, Toolchain where the result does not run."""
    model = graph.prepare(context.source, split_gemm=True)
    layers = [layer.name for layer in graph.layers(model)]
    excluded = graph.matching([*layers, *graph.tables(model)], parameters.exclude)
    if not set(layers) - set(excluded):
        raise UnsupportedOperator("int4_weight_only: the graph has no FP32 MatMul or Gemm by a constant matrix that is not excluded")
    context.progress(0.2, f"{len(layers)} products to {parameters.bits} bits")
    if parameters.quantize_embeddings:
        model = graph.raise_opset(model, TABLE_OPSET)
    path = str(context.target / graph.MODEL)
    _write(model, path, parameters, list(excluded))
    folder.copy_files(context.source, context.target, (*folder.TOKENIZER_FILES, *folder.DESCRIPTION_FILES))
    context.progress(0.8, "running the result once")
    signature = context.signature.model_copy(update={"dtype": f"int{parameters.bits}"})
    run_once(context.target, signature, context.threads, "int4_weight_only")
    counts = _count(path)
    notes = {"quantized_layers": counts[PRODUCT], "quantized_tables": counts[TABLE], "excluded": list(excluded)}
    return Outcome(signature, {**notes, "bits": parameters.bits, "block_size": parameters.block_size})
