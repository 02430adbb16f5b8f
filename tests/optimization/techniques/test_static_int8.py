"""Static INT8: three ways to calibrate, networks of both kinds, and ranges that no padding widens."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from benchmarks import corpus
from services.optimization.failures import NotEnoughData, UnsupportedOperator
from services.optimization.rows import TextRows
from services.optimization.techniques import find
from services.optimization.techniques.quantization.calibration import unpadded
from tests.applied import apply
from tests.converted import Made, answer, cosine, weight_bytes
from tests.models import minilm_signature
from tests.optimization.techniques.exports import (
    Exports,
    defaulting,
    examples,
    initializers,
    layer_ending,
    operators,
    spoil,
    tensor_examples,
    tensor_model,
    weight_scales,
)

METHODS = ("minmax", "entropy", "percentile")


@pytest.mark.parametrize("method", METHODS)
def test_texts_of_many_lengths_calibrate_every_way(exports: Exports, tmp_path: Path, method: str) -> None:
    source = exports["lm"]
    target, outcome = apply(
        defaulting("static_int8", calibration=method), *source, tmp_path / "int8", calibration=examples("lm"), target_fidelity=0.9
    )
    assert outcome.notes["calibration"] == method
    assert outcome.notes["quantized_operators"] == ["MatMul", "Gather"]
    assert operators(target).count("QuantizeLinear") > 0
    assert cosine(source, (target, outcome.signature)) > 0.97
    assert weight_bytes(target) < 0.6 * weight_bytes(source[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_residual_net_calibrates_every_way_and_keeps_its_accuracy(exports: Exports, tmp_path: Path, method: str) -> None:
    source = exports["resnet"]
    target, outcome = apply(defaulting("static_int8", calibration=method), *source, tmp_path / "int8", calibration=examples("resnet", 64))
    assert outcome.notes["quantized_layers"] == 7
    assert {value.dtype for value in initializers(target).values() if value.ndim == 4} == {np.dtype(np.int8)}
    images = corpus.digits("held_out")
    right = [accuracy(made, images) for made in (source, (target, outcome.signature))]
    assert right[1] >= right[0] - 0.02


def accuracy(made: Made, images: corpus.Images) -> float:
    return float((answer(made, {"pixel_values": images.pixel_values}).argmax(-1) == images.labels).mean())


def test_a_higher_percentile_makes_wider_ranges(exports: Exports, tmp_path: Path) -> None:
    widths = {}
    for percentile in (95, 100):
        technique = defaulting("static_int8", calibration="percentile", percentile=percentile, target_fidelity=None)
        target, _ = apply(technique, *exports["vit"], tmp_path / str(percentile), calibration=examples("vit"))
        scales = [value for name, value in initializers(target).items() if name.endswith("_scale") and value.ndim == 0]
        widths[percentile] = float(np.sum(scales))
    assert widths[95] < 0.8 * widths[100]


def test_the_search_keeps_the_spoiled_layer_in_fp32_and_no_other(exports: Exports, tmp_path: Path) -> None:
    layer = layer_ending(exports["vit"], "layers.1/mlp/fc1/MatMul")
    spoiled = spoil(exports["vit"], tmp_path / "spoiled", layer)
    _, outcome = apply("static_int8", *spoiled, tmp_path / "int8", calibration=examples("vit"), target_fidelity=0.99)
    assert outcome.notes["excluded"] == [layer]
    assert next(iter(outcome.notes["sensitivity"])) == layer
    assert outcome.notes["trials"][0]["fidelity"] < 0.99 <= outcome.notes["calibration_fidelity"]


def test_per_tensor_has_one_weight_scale_where_per_channel_has_one_per_output(exports: Exports, tmp_path: Path) -> None:
    counts = {}
    for per_channel in (True, False):
        target, _ = apply(
            "static_int8", *exports["resnet"], tmp_path / str(per_channel), calibration=examples("resnet"), per_channel=per_channel
        )
        counts[per_channel] = weight_scales(target)
    assert counts[False] == [1] * 7
    assert sorted(counts[True]) == [10, 16, 16, 16, 32, 32, 32]


def test_patterns_exclude_what_they_match(exports: Exports, tmp_path: Path) -> None:
    target, outcome = apply(
        "static_int8", *exports["resnet"], tmp_path / "int8", calibration=examples("resnet"), exclude=["*shortcut*"], target_fidelity=None
    )
    assert len(outcome.notes["excluded"]) == 1
    assert sum(value.dtype == np.float32 for value in initializers(target).values() if value.ndim == 4) == 1


def test_an_old_operator_set_is_raised_for_scales_per_channel(tmp_path: Path) -> None:
    source = tensor_model(tmp_path / "model")
    target, outcome = apply("static_int8", *source, tmp_path / "int8", calibration=tensor_examples(), target_fidelity=None)
    assert [entry.version for entry in onnx.load(target / "model.onnx").opset_import if entry.domain == ""] == [13]
    arrays = {"x": tensor_examples().arrays["x"][:4]}
    np.testing.assert_allclose(answer((target, outcome.signature), arrays), answer(source, arrays), atol=0.5)


@pytest.mark.parametrize(
    ("count", "told"), [(1, "1 calibration example; "), (15, "15 calibration examples; "), (0, "0 calibration examples; ")]
)
def test_too_few_examples_are_refused_even_without_a_search(exports: Exports, tmp_path: Path, count: int, told: str) -> None:
    with pytest.raises(NotEnoughData, match=f"static_int8: {told}ranges that stand for the data need at least 16"):
        apply("static_int8", *exports["vit"], tmp_path / "int8", calibration=examples("vit").take(range(count)), target_fidelity=None)


def test_data_of_another_kind_is_refused(exports: Exports, tmp_path: Path) -> None:
    with pytest.raises(NotEnoughData, match="pixel_values"):
        apply("static_int8", *exports["vit"], tmp_path / "int8", calibration=examples("lm"))


def test_a_graph_without_weights_is_refused(tmp_path: Path) -> None:
    folder, signature = tensor_model(tmp_path / "model")
    model = onnx.load(folder / "model.onnx")
    del model.graph.node[:]
    model.graph.node.append(onnx.helper.make_node("Gather", ["x", "which"], ["y"], "gather", axis=1))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(4), "which"))
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(UnsupportedOperator, match="no FP32 Conv, MatMul or Gemm by a constant weight"):
        apply("static_int8", folder, signature, tmp_path / "int8", calibration=tensor_examples())


def test_nothing_is_padded_for_calibration() -> None:
    lengths = [3, 5, 3, 7, 3, 5, 3]
    rows = TextRows([np.arange(1, length + 1) for length in lengths], minilm_signature())
    found = [batch["attention_mask"] for batch in unpadded(rows, batch_rows=3)]
    assert [mask.shape for mask in found] == [(3, 3), (1, 3), (2, 5), (1, 7)]
    assert all(mask.all() for mask in found)


@pytest.mark.parametrize(
    ("field", "value"), [("calibration", "histogram"), ("percentile", 101), ("percentile", 50), ("activation_type", "S8")]
)
def test_bad_parameters_are_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        find("static_int8").parameters.model_validate({field: value})


def test_calibration_is_asked_for_whatever_the_parameters() -> None:
    assert find("static_int8").parameters.model_validate({"target_fidelity": None}).uses_calibration()
