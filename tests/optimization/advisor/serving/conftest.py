"""Text classifiers small enough to be served within seconds, one slower than the other."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from services.optimization.techniques import Model
from services.repository.manifest import Format, Signature, Task, TensorSpec
from tests.models import minilm

_WIDTH = 192
_WORDS = 30_522  # of MiniLM's tokenizer


def text_model(folder: Path, layers: int) -> Model:
    """The mean of a text's token vectors after so many square layers, as ONNX; it has random weights."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    draw = np.random.default_rng(layers)
    names = [f"h{index}" for index in range(layers + 1)]
    constants = [
        numpy_helper.from_array(draw.normal(0, 0.1, (_WORDS, _WIDTH)).astype(np.float32), "vectors"),
        numpy_helper.from_array(draw.normal(0, 0.1, (_WIDTH, _WIDTH)).astype(np.float32), "square"),
        numpy_helper.from_array(draw.normal(0, 1, (_WIDTH, 2)).astype(np.float32), "head"),
        numpy_helper.from_array(np.array([1], np.int64), "tokens"),
    ]
    nodes = [
        helper.make_node("Gather", ["vectors", "input_ids"], ["h0"]),
        *(helper.make_node("MatMul", [before, "square"], [after]) for before, after in pairwise(names)),
        helper.make_node("ReduceMean", [names[-1]], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"]) for name in ("input_ids", "attention_mask")]
    graph = helper.make_graph(nodes, "texts", inputs, [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 2])], constants)
    folder.mkdir()
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    shutil.copyfile(minilm() / "tokenizer.json", folder / "tokenizer.json")
    return Model(folder, _signature())


def _signature() -> Signature:
    return Signature(
        task=Task.CLASSIFICATION,
        format=Format.ONNX,
        inputs=tuple(TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in ("input_ids", "attention_mask")),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 2)),),
        labels=("bad", "good"),
        max_tokens=128,
    )


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return text_model(tmp_path_factory.mktemp("slow") / "model", 150)


@pytest.fixture(scope="session")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return text_model(tmp_path_factory.mktemp("fast") / "model", 1)
