"""What cannot be compared is refused by its reason, before anything is timed."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from services.backends.text import read_tokenizer
from services.optimization.evaluation.answers import Answers
from services.optimization.evaluation.comparison import Comparison, check_reference, text_batches
from services.optimization.evaluation.latency import Workload
from services.optimization.examples import Examples
from services.optimization.failures import BadModel, NotEnoughData, Toolchain, UnsupportedOperator
from services.optimization.techniques import Model
from services.repository.manifest import Format, Signature, Task, TensorSpec
from tests.models import minilm, minilm_signature

EXAMPLES = Examples(arrays={"x": np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)})


def product(folder: Path, weight: np.ndarray, rows: int = -1) -> Model:
    """x [n, 4] times a weight; with `rows` it runs on so many alone."""
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", None]) for name in ("x", "y")]
    nodes = [onnx.helper.make_node("Reshape", ["x", "shape"], ["z"]), onnx.helper.make_node("MatMul", ["z", "w"], ["y"])]
    constants = {"w": weight.astype(np.float32), "shape": np.array([rows, 4])}
    graph = onnx.helper.make_graph(
        nodes, "g", values[:1], values[1:], [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    folder.mkdir()
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    specs = [TensorSpec(name=name, datatype="FP32", shape=(-1, size)) for name, size in (("x", 4), ("y", weight.shape[1]))]
    return Model(folder, Signature(task=Task.TENSOR, format=Format.ONNX, inputs=(specs[0],), outputs=(specs[1],)))


def test_a_candidate_that_answers_less_or_not_to_every_batch_is_refused(tmp_path: Path) -> None:
    original = product(tmp_path / "original", np.eye(4))
    with Comparison(original, EXAMPLES, threads=1, seed=0) as comparison:
        with pytest.raises(UnsupportedOperator, match="answers 3 values where the original answers 4"):
            comparison.admit("narrow", product(tmp_path / "narrow", np.eye(4)[:, :3]))
        with pytest.raises(Toolchain, match="does not run"):  # the examples come in batches of 16, and workloads do not
            comparison.admit("sixteen", product(tmp_path / "sixteen", np.eye(4), rows=16))
        assert comparison.admit("equal", original).fidelity.interval.estimate == 1
        assert comparison.measure_latency(0.01).keys() == {"", "equal"}


def test_an_original_that_answers_no_numbers_is_a_bad_model(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="NaN or infinity"):
        Comparison(product(tmp_path / "broken", np.full((4, 4), np.nan)), EXAMPLES, threads=1, seed=0)


def test_a_language_model_is_judged_by_next_tokens() -> None:
    alone = Answers(predictions=[np.zeros(1, int)] * 3, losses=[np.empty(0)] * 3)
    with pytest.raises(NotEnoughData, match="evaluation: every text is a single token"):
        check_reference(Task.CAUSAL_LM, alone)
    check_reference(Task.TOKEN_CLASSIFICATION, alone)


def test_rows_are_as_long_as_their_workload_says() -> None:
    """However little text there is; each row begins with another one."""
    model = Model(minilm(), minilm_signature())
    [batch] = text_batches(model, ["two words", "and three more"], [Workload(3, 64)])
    assert batch["attention_mask"].sum(1).tolist() == [64, 64, 64]
    assert [read_tokenizer(model.folder).decode(row[:5].tolist()) for row in batch["input_ids"]] == [
        "two words and three",
        "and three more two",
        "two words and three",
    ]
