"""Quantization-aware training: arithmetic that is the engine's own, and runs that end in models quantized as they were trained."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks import corpus
from services.optimization.failures import NotEnoughData, UnsupportedOperator
from services.optimization.techniques import find
from services.optimization.techniques.quantization import dynamic, fake
from services.optimization.techniques.quantization.folding import folded
from services.repository.manifest import Format
from tests.applied import apply
from tests.converted import Made, Sources, answer, cosine, weight_bytes
from tests.optimization.techniques.exports import Exports, defaulting, examples, initializers, operators, weight_scales

VALUES = arrays(np.float32, (4, 6), elements=st.floats(-1000, 1000, width=32, allow_subnormal=False))
RANGES = st.tuples(st.floats(-100, 1, width=32, allow_subnormal=False), st.floats(2, 100, width=32))
QUICK = {"epochs": 1, "learning_rate": 1e-4, "patience": 0}


def fp32(name: str, shape: list[Any] | None = None) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape or ["rows", 6])


def session(nodes: list[Any], inputs: list[Any]) -> ort.InferenceSession:
    graph = helper.make_graph(nodes, "g", inputs, [fp32("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@cache
def dynamic_session() -> ort.InferenceSession:
    quantize = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    return session([quantize, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])], [fp32("x")])


@cache
def static_session() -> ort.InferenceSession:
    inputs = [
        fp32("x"),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
        helper.make_tensor_value_info("z", TensorProto.UINT8, []),
    ]
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    return session(nodes, inputs)


@given(VALUES)
def test_a_dynamic_activation_is_exactly_what_the_engine_makes_of_it(values: np.ndarray) -> None:
    (wanted,) = dynamic_session().run(["y"], {"x": values})
    np.testing.assert_array_equal(fake.DynamicActivation()(torch.from_numpy(values)).numpy(), wanted)


@given(VALUES, RANGES)
def test_a_static_activation_is_exactly_what_the_engine_makes_of_it(values: np.ndarray, limits: tuple[float, float]) -> None:
    low, high = map(torch.tensor, limits)
    scale, zero = (value.numpy() for value in fake.activation_scale(low, high))
    (wanted,) = static_session().run(["y"], {"x": values, "s": scale, "z": zero.astype(np.uint8)})
    np.testing.assert_array_equal(fake.fake_activation(torch.from_numpy(values), low, high).numpy(), wanted)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("reduce_range", "levels"), [(False, 127), (True, 64)])
def test_a_weight_is_exactly_what_the_library_makes_of_it(tmp_path: Path, per_channel: bool, reduce_range: bool, levels: int) -> None:
    weight = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    weight[:, 2] = 0
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "g",
        [fp32("x", ["rows", 16])],
        [fp32("y")],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "plain.onnx")
    dynamic.write(tmp_path / "plain.onnx", tmp_path / "model.onnx", ["product"], per_channel=per_channel, reduce_range=reduce_range)
    found = initializers(tmp_path)
    wanted = found["w_quantized"].astype(np.float32) * found["w_scale"]
    made = fake.fake_weight(torch.from_numpy(weight), levels, 1 if per_channel else None)
    np.testing.assert_array_equal(made.numpy(), wanted)


def test_gradients_pass_straight_through_rounding_and_stop_at_the_range() -> None:
    values = torch.tensor([-3.0, -0.6, 0.1, 0.7, 5.0], requires_grad=True)
    fake.fake_activation(values, torch.tensor(-1.0), torch.tensor(1.0)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 0]
    weight = torch.randn(3, 4, requires_grad=True)
    fake.fake_weight(weight, 127, 0).sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 1).all()


def test_an_observer_follows_in_training_and_stands_still_in_evaluation() -> None:
    observer = fake.StaticActivation()
    observer(torch.tensor([-1.0, 3.0]))
    assert observer.range() == (-1.0, 3.0)
    observer(torch.tensor([-2.0, 5.0]))
    assert observer.range() == pytest.approx((-1.05, 3.1))
    observer.eval()(torch.tensor([-100.0, 100.0]))
    assert observer.range() == pytest.approx((-1.05, 3.1))
    assert set(observer.state_dict()) == {"low", "high", "seen"}


def test_folding_changes_no_answer_and_leaves_no_normalization() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3))
        for _ in range(3):
            net(torch.randn(8, 2, 6, 6) * 3 + 1)
    net.eval()
    made = folded(net)
    images = torch.linspace(-2, 2, 2 * 2 * 36).reshape(2, 2, 6, 6)
    torch.testing.assert_close(made(images), net(images))
    assert not any(isinstance(child, nn.BatchNorm2d) for child in made.modules())
    assert sum(isinstance(child, nn.BatchNorm2d) for child in net.modules()) == 2


@pytest.fixture(scope="module")
def sources(exports: Exports) -> Sources:
    return exports.sources


def accuracy(made: Made) -> float:
    images = corpus.digits("held_out")
    return float((answer(made, {"pixel_values": images.pixel_values}).argmax(-1) == images.labels).mean())


def test_a_residual_net_ends_in_int8_with_the_accuracy_it_had(sources: Sources, tmp_path: Path) -> None:
    source = sources["resnet"]
    target, outcome = apply(defaulting("qat", training=QUICK), *source, tmp_path / "qat", training=examples("resnet", 512))
    assert (outcome.signature.format, outcome.signature.dtype, outcome.notes["scheme"]) == (Format.ONNX, "int8", "static")
    assert sorted(weight_scales(target)) == [10, 16, 16, 16, 32, 32, 32]
    assert not [value for value in initializers(target).values() if value.dtype == np.float32 and value.ndim > 1]
    assert operators(target).count("Conv") == 6
    assert "BatchNormalization" not in operators(target)
    assert outcome.notes["quantized_outputs"] == 4  # the sums' and the pooling's inputs; a ReLU's are the next layer's
    assert accuracy((target, outcome.signature)) >= accuracy(source) - 0.02
    assert {"loss", "validation_loss"} <= set(outcome.notes["curves"])
    assert outcome.notes["largest_deviation"] < 1e-3 < outcome.notes["tolerance"]


def test_integer_kernels_run_the_convolutions(sources: Sources, tmp_path: Path) -> None:
    target, _ = apply(defaulting("qat", training=QUICK), *sources["resnet"], tmp_path / "qat", training=examples("resnet", 64))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(target / "model.onnx"), options, providers=["CPUExecutionProvider"])
    run = operators(tmp_path)
    assert (run.count("QLinearConv"), run.count("QGemm"), run.count("Conv"), run.count("Gemm")) == (6, 1, 0, 0)


@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_a_transformer_ends_in_int8_by_either_scheme(sources: Sources, tmp_path: Path, scheme: str) -> None:
    source = sources["vit"]
    technique = defaulting("qat", scheme=scheme, training=QUICK)
    target, outcome = apply(technique, *source, tmp_path / "qat", training=examples("vit", 64))
    assert outcome.notes["scheme"] == scheme
    assert outcome.notes["quantized_layers"] == 13
    assert operators(target).count("MatMulInteger") == (13 if scheme == "dynamic" else 0)
    assert len(weight_scales(target)) == (0 if scheme == "dynamic" else 13)
    assert weight_bytes(target) < 0.6 * weight_bytes(source[0])
    assert accuracy((target, outcome.signature)) >= accuracy(source) - 0.03


def test_a_language_model_with_tied_tables_ends_in_int8(sources: Sources, tmp_path: Path) -> None:
    source = sources["lm"]
    target, outcome = apply(defaulting("qat", training=QUICK), *source, tmp_path / "qat", training=examples("lm", 64))
    assert outcome.notes["scheme"] == "dynamic"
    assert outcome.notes["quantized_tables"] == 2
    assert cosine(source, (target, outcome.signature)) > 0.98


def test_training_wins_back_what_quantization_cost(sources: Sources, tmp_path: Path) -> None:
    source = unbalanced(sources["resnet"], tmp_path / "unbalanced")
    technique = defaulting("qat", per_channel=False, training={"epochs": 6, "learning_rate": 1e-3, "patience": 0})
    calibration = examples("resnet", 600).take(range(512, 600))  # what fidelity is measured on
    _, outcome = apply(technique, *source, tmp_path / "qat", training=examples("resnet", 512), calibration=calibration)
    assert outcome.notes["fidelity_examples"] == 88
    assert outcome.notes["fidelity_before"] < 0.9
    assert outcome.notes["fidelity_after"] > outcome.notes["fidelity_before"] + 0.1
    assert outcome.notes["largest_deviation"] < 1e-3  # ranges far apart: a bias that is rounded here and not there would show


def unbalanced(made: Made, folder: Path) -> Made:
    """The same function with one channel 200 times what it was, which the next layer divides again: bad for one scale."""
    shutil.copytree(made[0], folder)
    weights = load_file(folder / "model.safetensors")
    names = "resnet.encoder.stages.0.layers.0.layer.{}"
    for name in ("normalization.weight", "normalization.bias"):
        weights[f"{names.format(0)}.{name}"][0] *= 200
    weights[f"{names.format(1)}.convolution.weight"][:, 0] /= 200
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, made[1]


def test_excluded_modules_stay_in_fp32(sources: Sources, tmp_path: Path) -> None:
    technique = defaulting("qat", exclude=["*shortcut*", "*classifier*"], training=QUICK)
    target, outcome = apply(technique, *sources["resnet"], tmp_path / "qat", training=examples("resnet", 64))
    assert outcome.notes["quantized_layers"] == 5
    assert sum(value.dtype == np.float32 for value in initializers(target).values() if value.ndim > 1) == 2


@pytest.mark.parametrize(
    ("parameters", "count", "failure", "told"),
    [
        ({"scheme": "dynamic"}, 64, UnsupportedOperator, "the dynamic scheme quantizes no convolutions"),
        ({"exclude": ["*"]}, 64, UnsupportedOperator, "or all are excluded"),
        ({}, 15, NotEnoughData, "qat: 15 training examples; it needs at least 16"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    sources: Sources, tmp_path: Path, parameters: dict[str, Any], count: int, failure: type[Exception], told: str
) -> None:
    with pytest.raises(failure, match=told):
        apply(defaulting("qat", **parameters), *sources["resnet"], tmp_path / "qat", training=examples("resnet", count))


@pytest.mark.parametrize(("field", "value"), [("scheme", "mixed"), ("training", {"epochs": 0}), ("losses", {"alpha": 2}), ("bits", 4)])
def test_bad_parameters_are_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        find("qat").parameters.model_validate({field: value})


def test_training_examples_are_asked_for() -> None:
    assert find("qat").needs_training
