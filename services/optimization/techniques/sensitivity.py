"""Which layers suffer from INT8: each simulated alone, on the inputs that it really gets."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from services.optimization.techniques.quantization.graph import Floats, Layer

_ERROR_SEVERITY = 3

Feed = Mapping[str, NDArray[Any]]
Squares = NDArray[np.float64]

# What activations of this tensor become: (tensor's name, values) -> the same, quantized and dequantized.
QuantizeActivation = Callable[[str, Floats], Floats]


def quantize_between(values: Floats, low: float, high: float) -> Floats:
    """Asymmetric, unsigned 8 bits over [low, high] widened to hold zero, which stays exact; what lies outside is clipped."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / 255)) or 1.0  # as the engine has it: a range of subnormals has none
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    levels = np.clip(np.rint(values / scale) + zero_point, 0, 255)
    quantized: Floats = ((levels - zero_point) * scale).astype(np.float32)
    return quantized


def quantize_activation(_: str, values: Floats) -> Floats:
    """Over the tensor's own range, as DynamicQuantizeLinear defines it."""
    return quantize_between(values, float(values.min()), float(values.max()))


def quantize_weight(weight: Floats, levels: int, channel_axis: int | None) -> Floats:
    """Symmetric, signed, +-`levels`; one scale per channel along an axis, or one for all; answered dequantized."""
    axes = None if channel_axis is None else tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    peak = np.abs(weight).max(axis=axes, keepdims=True)
    scale = np.maximum(peak / levels, np.finfo(np.float32).tiny)  # of zeros, and of what is so small that a step of it would be 0
    quantized: Floats = (np.rint(weight / scale) * scale).astype(np.float32)
    return quantized


def _session(model: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERROR_SEVERITY
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # a fused tensor could not be watched
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _captured(model: Any, names: Iterable[str], feeds: Sequence[Feed], threads: int) -> Iterator[Mapping[str, Floats]]:
    """What flows through the tensors `names`, batch by batch."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    wanted = sorted(set(names))
    declared = {value.name for value in (*watched.graph.output, *watched.graph.input)}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in declared)
    inputs = {value.name for value in watched.graph.input}
    computed = [name for name in wanted if name not in inputs]
    session = _session(watched, threads)
    for feed in feeds:
        found = dict(zip(computed, session.run(computed, dict(feed)), strict=True)) if computed else {}
        yield found | {name: feed[name] for name in wanted if name in inputs}


class _Alone:
    """One layer without its bias, both of its inputs free. The engine runs it, so convolutions need no arithmetic of ours."""

    def __init__(self, layer: Layer, opsets: Sequence[Any], ir_version: int, threads: int) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(layer.node)
        del node.input[:], node.output[:]
        node.input.extend(["activation", "weight"])
        node.output.append("product")
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("activation", "weight", "product")]
        graph = onnx.helper.make_graph([node], "alone", values[:2], values[2:])
        self._session = _session(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), threads)
        self._layer = layer

    def product(self, activation: Floats, weight: Floats) -> Floats:
        found: Floats = self._session.run(["product"], {"activation": activation, "weight": weight})[0]
        return found

    def shares(self, activation: Floats, quantized: Floats, weight: Floats) -> Squares:
        """[sum, count] over one batch's tokens, rows or pixels: |noise|^2 / |signal|^2 of each, the channels being its vector.

        Each counts equally. A sum over all of them is that of the few tokens whose activations are a hundred times the
        others', which quantize well, and hides what their range does to the rest.
        """
        exact = self.product(activation, self._layer.weight)
        noise = self.product(quantized, weight) - exact
        axis = 1 if self._layer.node.op_type == "Conv" else -1
        signals, noises = (np.square(values, dtype=np.float64).sum(axis) for values in (exact, noise))
        some = signals > 0
        return np.array([(noises[some] / signals[some]).sum(), some.sum()])


def measure(
    model: Any,
    layers: Sequence[Layer],
    feeds: Sequence[Feed],
    threads: int,
    *,
    levels: int,
    per_channel: bool,
    quantize: QuantizeActivation = quantize_activation,
) -> dict[str, float]:
    """Relative output error |noise| / |signal| of each layer with its weight and its input in INT8, worst first.

    The root of the mean square over all output vectors: tokens, rows, or pixels.
    """
    alone = [_Alone(layer, model.opset_import, model.ir_version, threads) for layer in layers]
    weights = [quantize_weight(layer.weight, levels, layer.channel_axis if per_channel else None) for layer in layers]
    sums: list[Squares] = [np.zeros(2) for _ in layers]
    for tensors in _captured(model, (layer.activation for layer in layers), feeds, threads):
        quantized = {name: quantize(name, values) for name, values in tensors.items()}
        for index, layer in enumerate(layers):
            sums[index] += alone[index].shares(tensors[layer.activation], quantized[layer.activation], weights[index])
    errors = {layer.name: float(np.sqrt(total / max(count, 1))) for layer, (total, count) in zip(layers, sums, strict=True)}
    return dict(sorted(errors.items(), key=lambda item: -item[1]))
