"""The small models of every task as ONNX, with examples to calibrate them on."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from pydantic import create_model

from benchmarks import corpus
from services.optimization.examples import Examples
from services.optimization.techniques import Technique, find
from services.repository.manifest import Format, Signature, Task, TensorSpec
from tests.applied import apply
from tests.converted import Made, Sources


class Exports:
    """Each made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sources = Sources(root / "sources")
        self._made: dict[str, Made] = {}
        (root / "sources").mkdir()

    def __getitem__(self, name: str) -> Made:
        if name not in self._made:
            target, outcome = apply("export_onnx", *self.sources[name], self.root / name)
            self._made[name] = target, outcome.signature
        return self._made[name]


@cache
def examples(name: str, count: int = 32) -> Examples:
    """Of the kind that the model of that name takes, labelled where it classifies."""
    if name in ("resnet", "vit"):
        images = corpus.digits("train")
        return Examples(arrays={"pixel_values": images.pixel_values[:count]}, labels=images.labels[:count])
    if name == "tokens":
        lines = corpus.source_lines(count, "train")
        return Examples(words=tuple(lines.words), word_labels=tuple(lines.tags))
    return Examples(texts=tuple(corpus.prose(count, "train")))


def defaulting(technique: str, **parameters: Any) -> Technique:
    """With these parameters as its defaults: some are named as `apply` names its examples."""
    found = find(technique)
    chosen = found.parameters.model_validate(parameters)
    fields: dict[str, Any] = {name: (field.annotation, getattr(chosen, name)) for name, field in found.parameters.model_fields.items()}
    return replace(found, parameters=create_model("Chosen", __base__=found.parameters, **fields))


def tensor_model(folder: Path) -> Made:
    """Two Gemms with a ReLU between, x FP32 [rows, 8] to y FP32 [rows, 4]. Opset 12: older than a scale per channel."""
    random = np.random.default_rng(0)
    weights = {"a": (16, 8), "b": (16,), "c": (16, 4)}
    tensors = [numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name) for name, shape in weights.items()]
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["h"], "first", transB=1),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "c"], ["y"], "second"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name, size in (("x", 8), ("y", 4))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    folder.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7), folder / "model.onnx")
    specs = [TensorSpec(name=name, datatype="FP32", shape=(-1, size)) for name, size in (("x", 8), ("y", 4))]
    return folder, Signature(task=Task.TENSOR, format=Format.ONNX, inputs=(specs[0],), outputs=(specs[1],))


def tensor_examples(count: int = 32) -> Examples:
    return Examples(arrays={"x": np.random.default_rng(1).normal(size=(count, 8)).astype(np.float32)})


def spoil(made: Made, folder: Path, layer: str, factor: float = 1e4) -> Made:
    """The same function, in which one input of the layer is `factor` times the others: poison for a scale per tensor."""
    model = onnx.load(made[0] / "model.onnx")
    weights = {value.name: value for value in model.graph.initializer}
    index, node = next((index, node) for index, node in enumerate(model.graph.node) if node.name == layer)
    weight = numpy_helper.to_array(weights[node.input[1]])
    scale = np.ones(len(weight), np.float32)
    scale[0] = factor
    added = {"poison": scale, "cure": weight / scale[:, None]}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in added.items())
    scaling = helper.make_node("Mul", [node.input[0], "poison"], ["spoiled"], "spoil")
    node.input[:] = ["spoiled", "cure"]  # before the insertion, which moves what `node` stands for
    model.graph.node.insert(index, scaling)
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return folder, made[1]


def layer_ending(made: Made, ending: str) -> str:
    """The node whose name ends so."""
    return next(node.name for node in onnx.load(made[0] / "model.onnx").graph.node if node.name.endswith(ending))


def initializers(folder: Path) -> Mapping[str, Any]:
    """Arrays by name."""
    return {value.name: numpy_helper.to_array(value) for value in onnx.load(folder / "model.onnx").graph.initializer}


def weight_scales(folder: Path) -> list[int]:
    """How many scales each INT8 weight of a graph with DequantizeLinear has."""
    model, constants = onnx.load(folder / "model.onnx"), initializers(folder)
    pairs = [
        (constants.get(node.input[0]), constants.get(node.input[1])) for node in model.graph.node if node.op_type == "DequantizeLinear"
    ]
    return [scale.size for values, scale in pairs if values is not None and values.dtype == np.int8]


def operators(folder: Path) -> list[str]:
    return [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
