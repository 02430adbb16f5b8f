"""Dynamic INT8 on every task, and the search over exclusions that it shares with static INT8."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from services.optimization.failures import NotEnoughData, UnsupportedOperator
from services.optimization.techniques import find
from tests.applied import apply
from tests.converted import answer, cosine, weight_bytes
from tests.optimization.techniques.exports import (
    Exports,
    examples,
    initializers,
    layer_ending,
    operators,
    spoil,
    tensor_examples,
    tensor_model,
)


@pytest.mark.parametrize("name", ["tokens", "lm", "vit"])
def test_every_transformer_is_quantized_and_answers_nearly_as_its_source(exports: Exports, tmp_path: Path, name: str) -> None:
    source = exports[name]
    target, outcome = apply("dynamic_int8", *source, tmp_path / "int8", calibration=examples(name), target_fidelity=0.95)
    assert outcome.signature.dtype == "int8"
    assert outcome.notes["calibration_fidelity"] >= 0.95
    assert outcome.notes["quantized_layers"] == operators(target).count("MatMulInteger") >= 8
    assert cosine(source, (target, outcome.signature)) > 0.99
    assert weight_bytes(target) < 0.6 * weight_bytes(source[0])


def test_a_tensor_model_is_searched_on_its_arrays(tmp_path: Path) -> None:
    source = tensor_model(tmp_path / "model")
    target, outcome = apply("dynamic_int8", *source, tmp_path / "int8", calibration=tensor_examples())
    assert outcome.notes["quantized_layers"] + len(outcome.notes["excluded"]) == 2
    assert list(outcome.notes["trials"][0]) == ["excluded", "reduce_range", "fidelity"]
    arrays = tensor_examples(4).arrays
    np.testing.assert_allclose(answer((target, outcome.signature), arrays), answer(source, arrays), atol=0.5)


def test_the_search_keeps_the_spoiled_layer_in_fp32_and_no_other(exports: Exports, tmp_path: Path) -> None:
    layer = layer_ending(exports["vit"], "layers.0/mlp/fc1/MatMul")
    spoiled = spoil(exports["vit"], tmp_path / "spoiled", layer)
    _, outcome = apply("dynamic_int8", *spoiled, tmp_path / "int8", calibration=examples("vit"), target_fidelity=0.99)
    assert outcome.notes["excluded"] == [layer]
    assert next(iter(outcome.notes["sensitivity"])) == layer
    assert outcome.notes["trials"][0]["fidelity"] < 0.99 <= outcome.notes["calibration_fidelity"]
    _, fixed = apply(
        "dynamic_int8", *spoiled, tmp_path / "bound", calibration=examples("vit"), target_fidelity=0.99, max_excluded_share=0.0
    )
    assert (fixed.notes["excluded"], fixed.notes["calibration_fidelity"] < 0.99) == ([], True)


def test_patterns_exclude_without_a_search(exports: Exports, tmp_path: Path) -> None:
    parameters = {"target_fidelity": None, "exclude": ["*mlp*"], "reduce_range": False}
    target, outcome = apply("dynamic_int8", *exports["vit"], tmp_path / "int8", **parameters)
    assert len(outcome.notes["excluded"]) == 4
    assert all("mlp" in name for name in outcome.notes["excluded"])
    assert outcome.notes["calibration_fidelity"] is None
    assert outcome.notes["sensitivity"] == {}
    assert operators(target).count("MatMul") >= 4


@pytest.mark.parametrize(("reduce_range", "largest"), [(False, 127), (True, 64)])
def test_weights_stay_within_the_range_asked_for(exports: Exports, tmp_path: Path, reduce_range: bool, largest: int) -> None:
    target, _ = apply("dynamic_int8", *exports["vit"], tmp_path / "int8", target_fidelity=None, reduce_range=reduce_range)
    weights = [value for value in initializers(target).values() if value.dtype == np.int8 and value.ndim == 2]
    assert weights
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) == largest


def test_per_tensor_has_one_scale_where_per_channel_has_one_per_output(exports: Exports, tmp_path: Path) -> None:
    counts = {}
    for per_channel in (True, False):
        target, _ = apply("dynamic_int8", *exports["vit"], tmp_path / str(per_channel), target_fidelity=None, per_channel=per_channel)
        counts[per_channel] = sum(value.size for name, value in initializers(target).items() if name.endswith("_scale"))
    assert counts[True] > 20 * counts[False]


def test_tables_stay_in_fp32_when_asked(exports: Exports, tmp_path: Path) -> None:
    sizes = {}
    for quantized in (True, False):
        target, outcome = apply(
            "dynamic_int8", *exports["lm"], tmp_path / str(quantized), target_fidelity=None, quantize_embeddings=quantized
        )
        sizes[quantized] = weight_bytes(target)
        assert (outcome.notes["quantized_tables"] > 0) is quantized
    assert sizes[True] < 0.8 * sizes[False]


def test_few_examples_are_refused_with_the_way_out(exports: Exports, tmp_path: Path) -> None:
    with pytest.raises(NotEnoughData, match=r"1 calibration example; null as target_fidelity quantizes without a search; .* at least 16"):
        apply("dynamic_int8", *exports["vit"], tmp_path / "one", calibration=examples("vit", 1))


def test_a_graph_without_products_is_refused(tmp_path: Path) -> None:
    folder, signature = tensor_model(tmp_path / "model")
    model = onnx.load(folder / "model.onnx")
    for weight in list(model.graph.initializer):  # computed weights are no constants
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [weight.name], value=weight))
    del model.graph.initializer[:]
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(UnsupportedOperator, match="no FP32 MatMul or Gemm by a constant matrix; static_int8 quantizes convolutions"):
        apply("dynamic_int8", folder, signature, tmp_path / "int8", target_fidelity=None)


@pytest.mark.parametrize(
    ("field", "value"), [("target_fidelity", 1.5), ("max_excluded_share", -0.1), ("exclude", "*"), ("per_chanel", True)]
)
def test_bad_parameters_are_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        find("dynamic_int8").parameters.model_validate({field: value})
