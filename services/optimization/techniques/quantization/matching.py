"""Which module a node of the exported graph came from: the one whose weight it holds, whatever the exporter named it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from torch import nn
from transformers.pytorch_utils import Conv1D

from services.optimization.failures import UnsupportedOperator
from services.optimization.techniques.quantization import graph
from services.optimization.techniques.quantization.graph import Floats, Layer

LAYERS = (nn.Linear, Conv1D, nn.Conv2d)
_RELATIVE = 1e-5  # of the largest weight: exporters multiply by what they fold
_RECTIFIERS = ("Relu", "Clip")


@dataclass(frozen=True)
class Place:
    """A layer of the graph and its module. `ends` tells that its product leaves INT8: nothing quantized takes it up at once."""

    layer: Layer
    module: str
    ends: bool

    @property
    def rounds_bias(self) -> bool:
        """Whether the node adds its bias itself, which integer kernels do in INT32. After a MatMul it is an Add of its own, in FP32."""
        return len(self.layer.node.input) > 2


def _candidates(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[tuple[str, Floats]]:
    for name, child in module.named_modules():
        if isinstance(child, kinds):
            yield name, child.get_parameter("weight").detach().numpy()


def _holds(weight: Floats, exported: Floats) -> bool:
    """Equal but for rounding, either way round where it is a matrix."""
    turned = [weight, weight.T] if weight.ndim == 2 else [weight]
    allowed = _RELATIVE * float(np.abs(exported).max(initial=0.0))
    return any(one.shape == exported.shape and bool(np.abs(one - exported).max(initial=0.0) <= allowed) for one in turned)


def _ends(model: Any, layer: Layer, quantized: set[str]) -> bool:
    """Only a convolution's product is worth INT8 on its own; it needs none where all that follows are quantized layers."""
    if layer.node.op_type != "Conv":
        return False
    return not all(_is_taken_up(model, user, layer.node.output[0], quantized) for user in _users(model, layer.node))


def _users(model: Any, node: Any) -> list[Any]:
    return [user for user in model.graph.node if set(node.output) & set(user.input)]


def _is_taken_up(model: Any, user: Any, tensor: str, quantized: set[str]) -> bool:
    if user.op_type in _RECTIFIERS:
        followers = _users(model, user)
        return bool(followers) and all(_is_taken_up(model, follower, user.output[0], quantized) for follower in followers)
    return user.name in quantized and user.input[0] == tensor


def places(model: Any, module: nn.Module, op_types: Sequence[str], exclude: Sequence[str]) -> list[Place]:
    """The layers to quantize, but for modules that a pattern of `exclude` matches. Raises UnsupportedOperator when none is left."""
    left = dict(_candidates(module, LAYERS))
    found: list[tuple[Layer, str]] = []
    for layer in graph.layers(model, op_types):
        name = next((name for name, weight in left.items() if _holds(weight, layer.weight)), None)
        if name is not None:
            del left[name]
            found.append((layer, name))
    wanted = [(layer, name) for layer, name in found if not graph.matching([name], exclude)]
    if not wanted:
        raise UnsupportedOperator("qat: no linear or convolutional layer of the model is found in its exported graph, or all are excluded")
    quantized = {layer.name for layer, _ in wanted}
    return [Place(layer, name, _ends(model, layer, quantized)) for layer, name in wanted]


def tables(model: Any, module: nn.Module) -> Mapping[str, str]:
    """The embedding behind each Gather that looks up a constant matrix: {node: module}."""
    constants = {value.name: value for value in model.graph.initializer}
    embeddings = list(_candidates(module, (nn.Embedding,)))
    found = {}
    names = set(graph.tables(model))
    for node in model.graph.node:
        if node.name not in names:
            continue
        exported = onnx.numpy_helper.to_array(constants[node.input[0]])
        match = next((name for name, weight in embeddings if weight.shape == exported.shape and _holds(weight, exported)), None)
        if match is not None:
            found[node.name] = match
    return found
