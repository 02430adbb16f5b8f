import numpy as np
import onnx
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from services.optimization.techniques import sensitivity
from services.optimization.techniques.quantization.graph import layers

ACTIVATIONS = arrays(np.float32, (4, 6), elements=st.floats(-100, 100, width=32))


def graph(outlier: float) -> onnx.ModelProto:
    """x -> MatMul `calm` -> Mul by a row with one outlier -> MatMul `wild`; MatMul of two activations is no weight product."""
    random = np.random.default_rng(0)
    calm, wild = (random.normal(size=(16, 16)).astype(np.float32) for _ in range(2))
    scale = np.ones(16, np.float32)
    scale[3] = outlier
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "calm"),
        helper.make_node("Mul", ["h", "s"], ["k"], "scale"),
        helper.make_node("MatMul", ["k", "b"], ["y"], "wild"),
        helper.make_node("Transpose", ["y"], ["t"], "turn"),
        helper.make_node("MatMul", ["y", "t"], ["z"], "activations"),
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in (("a", calm), ("b", wild), ("s", scale))]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", ["rows", 16]), ("z", ["rows", "rows"]))]
    return helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


def errors(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> dict[str, float]:
    return sensitivity.measure(model, layers(model), feeds, 1, levels=127, per_channel=True)


def test_the_product_behind_the_outlier_is_named_worst() -> None:
    feeds = [{"x": np.random.default_rng(seed).normal(size=(8, 16)).astype(np.float32)} for seed in range(2)]
    found = errors(graph(outlier=200.0), feeds)
    assert list(found) == ["wild", "calm"]
    assert found["wild"] > 2 * found["calm"]
    assert found["calm"] == errors(graph(outlier=1.0), feeds)["calm"]


def test_one_huge_row_does_not_hide_what_its_range_does_to_the_others() -> None:
    feed = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    calm = errors(graph(outlier=1.0), [{"x": feed}])["calm"]
    feed[0] *= 500
    assert errors(graph(outlier=1.0), [{"x": feed}])["calm"] > 20 * calm


def test_a_convolution_is_measured_by_its_pixels() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 2, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", strides=[2, 2])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", channels, "h", "v"]) for name, channels in (("x", 2), ("y", 4))]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.full(4, 1e6, np.float32), "b")]
    model = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:], constants), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    feed = np.random.default_rng(1).normal(size=(2, 2, 9, 9)).astype(np.float32)
    found = sensitivity.measure(model, layers(model, ("Conv",)), [{"x": feed}], 1, levels=127, per_channel=True)
    assert 0.001 < found["conv"] < 0.02  # the bias, which is added exactly, is no part of the signal


@given(ACTIVATIONS)
def test_activation_error_is_within_one_step(values: np.ndarray) -> None:
    found = sensitivity.quantize_activation("any", values)
    step = (max(values.max(), 0) - min(values.min(), 0)) / 255
    assert np.abs(found - values).max() <= step * 1.001 + 1e-30
    assert (found[values == 0] == 0).all()


@given(ACTIVATIONS)
def test_values_outside_a_given_range_are_clipped_to_it(values: np.ndarray) -> None:
    found = sensitivity.quantize_between(values, -10.0, 30.0)
    step = 40 / 255
    assert (found >= -10 - step).all()
    assert (found <= 30 + step).all()


@given(ACTIVATIONS, st.sampled_from([None, 0, 1]))
@example(np.full((4, 6), 1e-45, np.float32), None)
def test_weight_error_is_within_half_a_step_of_its_channel(values: np.ndarray, axis: int | None) -> None:
    found = sensitivity.quantize_weight(values, 127, axis)
    peak = np.abs(values).max() if axis is None else np.abs(values).max(axis=1 - axis, keepdims=True)
    assert (np.abs(found - values) <= peak / 127 * 0.5001 + 1e-30).all()
