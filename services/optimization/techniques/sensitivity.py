"""Which weight products suffer from dynamic INT8: each simulated on the inputs it really gets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Product:
    """A MatMul by a constant 2-D weight [inputs, outputs]."""

    name: str
    activation: str
    weight: Floats


def weight_products(model: onnx.ModelProto) -> list[Product]:
    """The FP32 MatMuls whose right side is a constant matrix, in graph order. Shares no memory with the model."""
    constants = {value.name: value for value in model.graph.initializer}
    found = []
    for node in model.graph.node:
        weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and len(weight.dims) == 2 and weight.data_type == onnx.TensorProto.FLOAT:
            found.append(Product(node.name, node.input[0], onnx.numpy_helper.to_array(weight).copy()))
    return found


def quantize_activation(values: Floats) -> Floats:
    """Per tensor, asymmetric, unsigned 8 bits, zero kept exact, as DynamicQuantizeLinear defines it; answered dequantized."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = (high - low) / 255 or 1.0
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    levels = np.clip(np.rint(values / scale) + zero_point, 0, 255)
    quantized: Floats = ((levels - zero_point) * scale).astype(np.float32)
    return quantized


def quantize_weight(weight: Floats, levels: int, per_channel: bool) -> Floats:
    """Symmetric, signed, +-`levels`; one scale per output column or one for all; answered dequantized."""
    peak = np.abs(weight).max(axis=0, keepdims=True) if per_channel else np.abs(weight).max(keepdims=True)
    scale = np.where(peak == 0, 1, peak) / levels
    quantized: Floats = (np.rint(weight / scale) * scale).astype(np.float32)
    return quantized


def _captured(model: onnx.ModelProto, names: Iterable[str], feeds: Sequence[Feed], threads: int) -> Iterator[Mapping[str, Floats]]:
    """What flows through the tensors `names`, batch by batch."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    wanted = sorted(set(names))
    declared = {value.name for value in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in declared)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # a fused tensor could not be watched
    session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for feed in feeds:
        yield dict(zip(wanted, session.run(wanted, dict(feed)), strict=True))


def _squares(product: Product, activation: Floats, quantized: Floats) -> NDArray[np.float64]:
    """[signal, noise] in sums of squares over one batch."""
    exact = activation @ product.weight
    noise = quantize_activation(activation) @ quantized - exact
    return np.array([np.square(exact).sum(), np.square(noise).sum()], np.float64)


def measure(model: onnx.ModelProto, feeds: Sequence[Feed], threads: int, *, levels: int, per_channel: bool) -> dict[str, float]:
    """Relative output error |noise| / |signal| of each weight product under dynamic INT8, worst first."""
    products = weight_products(model)
    weights = {product.name: quantize_weight(product.weight, levels, per_channel) for product in products}
    sums: dict[str, Any] = {product.name: np.zeros(2) for product in products}
    for tensors in _captured(model, (product.activation for product in products), feeds, threads):
        for product in products:
            activation = tensors[product.activation].reshape(-1, product.weight.shape[0])
            sums[product.name] += _squares(product, activation, weights[product.name])
    errors = {name: float(np.sqrt(noise / signal)) if signal else 0.0 for name, (signal, noise) in sums.items()}
    return dict(sorted(errors.items(), key=lambda item: -item[1]))
