"""An ONNX graph as quantization sees it: named nodes, the layers that hold weights, the tables that are looked up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from services.optimization.failures import Toolchain

MODEL = "model.onnx"
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """A node that multiplies an activation by a constant FP32 weight, which lies in `node.input[1]`.

    `weight` is [inputs, outputs] for MatMul, either way round for Gemm, [outputs, inputs, ...] for Conv; output channels
    run along `channel_axis`.
    """

    node: Any  # onnx.NodeProto
    weight: Floats
    channel_axis: int

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def activation(self) -> str:
        return str(self.node.input[0])


def prepare(source: Path, *, split_gemm: bool) -> Any:
    """The model of a folder, every node named, so that names mean the same before and after quantization.

    `split_gemm`: Gemm as MatMul and Add, which is the only form in which dynamic quantization takes it.
    """
    wrapped = ONNXModel(onnx.load(str(source / MODEL), load_external_data=False))
    if split_gemm:
        wrapped.replace_gemm_with_matmul()
        wrapped.clean_initializers()  # a weight that was transposed stays behind, and every session would warn of it
    for index, node in enumerate(wrapped.model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    add_pre_process_metadata(wrapped.model)  # nothing of the library's preprocessing helps here, and without the mark it logs a plea for it
    return wrapped.model


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _is_weight(op_type: str, tensor: Any) -> bool:
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
        return False
    return len(tensor.dims) > 2 if op_type == "Conv" else len(tensor.dims) == 2


def _channel_axis(node: Any) -> int:
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1


def layers(model: Any, op_types: Sequence[str] = ("MatMul",)) -> list[Layer]:
    """The nodes of these types whose second input is a constant FP32 weight, in graph order. Weights are copies."""
    constants = {value.name: value for value in model.graph.initializer}
    found = []
    for node in model.graph.node:
        tensor = constants.get(node.input[1]) if node.op_type in op_types and len(node.input) > 1 else None
        if _is_weight(node.op_type, tensor):
            found.append(Layer(node, onnx.numpy_helper.to_array(tensor).copy(), _channel_axis(node)))
    return found


def is_convolutional(model: Any) -> bool:
    """Whether convolutions hold most of the weights. A vision transformer has one, for its patches, and is none."""
    weights = [(layer.node.op_type, layer.weight.size) for layer in layers(model, ("Conv", "MatMul", "Gemm"))]
    convolved = sum(size for op_type, size in weights if op_type == "Conv")
    return 2 * convolved > sum(size for _, size in weights)


def tables(model: Any) -> list[str]:
    """Names of the Gather nodes that look rows up in a constant FP32 matrix."""
    matrices = {value.name for value in model.graph.initializer if len(value.dims) == 2 and value.data_type == onnx.TensorProto.FLOAT}
    return [node.name for node in model.graph.node if node.op_type == "Gather" and node.input[0] in matrices]


def raise_opset(model: Any, least: int) -> Any:
    """The model in operator set `least` or its own higher one. Raises Toolchain."""
    opset = next((found.version for found in model.opset_import if found.domain in ("", "ai.onnx")), 1)
    if opset >= least:
        return model
    try:
        raised = onnx.version_converter.convert_version(model, least)
    except Exception as error:  # the converter raises RuntimeError and its own classes
        raise Toolchain(f"operator set {opset} cannot be raised to {least}, which this quantization needs: {error}") from error
    add_pre_process_metadata(raised)  # the converter drops it
    return raised


def matching(names: Iterable[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` that one of the glob patterns matches."""
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))
