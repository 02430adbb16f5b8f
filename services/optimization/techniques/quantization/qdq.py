"""A graph with given ranges written into it, as pairs of QuantizeLinear and DequantizeLinear that the engine fuses into INT8 kernels.

onnxruntime's own quantizer takes ranges too, but quantizes a tensor for all that read it; here a residual sum keeps the FP32
values that it had in training.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from services.optimization.techniques.quantization.fake import activation_scale, weight_scale
from services.optimization.techniques.quantization.graph import Layer
from services.optimization.techniques.quantization.matching import Place
from services.optimization.techniques.quantization.simulation import Range, Ranges, Scheme

_INT32 = np.iinfo(np.int32)


class Writer:
    """Quantizes layers of a graph, in place."""

    def __init__(self, model: Any, scheme: Scheme) -> None:
        self._model = model
        self._scheme = scheme
        self._constants = {value.name: value for value in model.graph.initializer}
        self._before: dict[str, list[Any]] = {}  # new nodes by the name of the node that they precede, or follow
        self._after: dict[str, list[Any]] = {}
        self._inputs: dict[str, tuple[str, float]] = {}  # quantized activations: the dequantized tensor's name, its scale

    def quantize(self, places: Sequence[Place], ranges: Ranges) -> None:
        """The ranges of one tensor are equal, whichever module saw it."""
        for place in places:
            node = place.layer.node
            activation, scale = self._input(node, ranges.inputs[place.module])
            node.input[0] = activation
            node.input[1] = self._weight(place.layer)
            if len(node.input) > 2 and node.input[2] in self._constants:
                node.input[2] = self._bias(place.layer, node.input[2], scale)
            if place.module in ranges.outputs:
                self._output(node, ranges.outputs[place.module])

    def quantize_tables(self, nodes: Sequence[str]) -> None:
        """The Gather nodes look up 8 bits, which are dequantized after it."""
        for node in self._model.graph.node:
            if node.name in nodes:
                self._table(node)

    def finish(self) -> Any:
        """The model, nodes in order, without the weights that nothing reads any more."""
        nodes: list[Any] = []
        for node in self._model.graph.node:
            nodes += [*self._before.get(node.name, ()), node, *self._after.get(node.name, ())]
        del self._model.graph.node[:]
        self._model.graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        kept = [value for value in self._model.graph.initializer if value.name in read]
        del self._model.graph.initializer[:]
        self._model.graph.initializer.extend(kept)
        return self._model

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        self._model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        return name

    def _parameters(self, name: str, found: Range) -> tuple[list[str], NDArray[np.float32], NDArray[np.uint8]]:
        """Names of scale and zero point, and both."""
        scale, zero = (value.numpy() for value in activation_scale(torch.tensor(found[0]), torch.tensor(found[1])))
        zero = zero.astype(np.uint8)
        return [self._constant(f"{name}_scale", scale), self._constant(f"{name}_zero_point", zero)], scale, zero

    def _pair(self, tensor: str, name: str, found: Range) -> tuple[list[Any], str, float]:
        names, scale, _ = self._parameters(name, found)
        quantized, dequantized = f"{name}_quantized", f"{name}_dequantized"
        quantize = onnx.helper.make_node("QuantizeLinear", [tensor, *names], [quantized], f"{name}_QuantizeLinear")
        back = onnx.helper.make_node("DequantizeLinear", [quantized, *names], [dequantized], f"{name}_DequantizeLinear")
        return [quantize, back], dequantized, float(scale)

    def _input(self, node: Any, found: Range) -> tuple[str, float]:
        tensor = str(node.input[0])
        if tensor not in self._inputs:
            nodes, dequantized, scale = self._pair(tensor, f"{tensor}_input", found)
            self._before.setdefault(node.name, []).extend(nodes)
            self._inputs[tensor] = (dequantized, scale)
        return self._inputs[tensor]

    def _output(self, node: Any, found: Range) -> None:
        """The node writes under a new name, and all its readers get what was dequantized under the old one."""
        tensor = str(node.output[0])
        raw = f"{tensor}_raw"
        nodes, _, _ = self._pair(raw, f"{tensor}_output", found)
        nodes[1].output[0] = tensor
        node.output[0] = raw
        self._after.setdefault(node.name, []).extend(nodes)

    def _weight(self, layer: Layer) -> str:
        name = f"{layer.name}_weight"
        scale = self._weight_scale(layer)
        levels = np.clip(np.rint(layer.weight / scale), -self._scheme.levels, self._scheme.levels).astype(np.int8)
        return self._dequantized(layer.name, name, levels, scale, layer.channel_axis)

    def _weight_scale(self, layer: Layer) -> NDArray[np.float32]:
        axis = layer.channel_axis if self._scheme.per_channel else None
        scale: NDArray[np.float32] = weight_scale(torch.from_numpy(layer.weight), self._scheme.levels, axis).numpy()
        return scale

    def _bias(self, layer: Layer, name: str, activation: float) -> str:
        """INT32 in units of a product's own scale, as integer kernels add it."""
        scale = np.float32(activation) * self._weight_scale(layer).reshape(-1)
        levels = np.rint(onnx.numpy_helper.to_array(self._constants[name]).astype(np.float64) / scale)
        clipped = np.clip(levels, _INT32.min, _INT32.max).astype(np.int32)
        return self._dequantized(layer.name, f"{layer.name}_bias", clipped, scale, 0)

    def _dequantized(self, before: str, name: str, levels: NDArray[Any], scale: NDArray[np.float32], axis: int) -> str:
        scales = scale.reshape(-1) if self._scheme.per_channel else scale.reshape(())
        inputs = [
            self._constant(f"{name}_quantized", levels),
            self._constant(f"{name}_scale", scales),
            self._constant(f"{name}_zero_point", np.zeros(scales.shape, levels.dtype)),
        ]
        attributes = {"axis": axis} if self._scheme.per_channel else {}
        node = onnx.helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], f"{name}_DequantizeLinear", **attributes)
        self._before.setdefault(before, []).append(node)
        return f"{name}_dequantized"

    def _table(self, node: Any) -> None:
        values = onnx.numpy_helper.to_array(self._constants[node.input[0]])
        names, scale, zero = self._parameters(f"{node.name}_table", (float(values.min()), float(values.max())))
        levels = np.clip(np.rint(values / scale) + zero, 0, 255).astype(np.uint8)
        node.input[0] = self._constant(f"{node.name}_table_quantized", levels)
        output, raw = str(node.output[0]), f"{node.output[0]}_quantized"
        node.output[0] = raw
        dequantize = onnx.helper.make_node("DequantizeLinear", [raw, *names], [output], f"{node.name}_DequantizeLinear")
        self._after.setdefault(node.name, []).append(dequantize)
