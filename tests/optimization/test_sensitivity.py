import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from services.optimization.techniques import sensitivity

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


def test_the_product_behind_the_outlier_is_named_worst() -> None:
    feeds = [{"x": np.random.default_rng(seed).normal(size=(8, 16)).astype(np.float32)} for seed in range(2)]
    errors = sensitivity.measure(graph(outlier=200.0), feeds, 1, levels=127, per_channel=True)
    assert list(errors) == ["wild", "calm"]
    assert errors["wild"] > 2 * errors["calm"]
    calm = sensitivity.measure(graph(outlier=1.0), feeds, 1, levels=127, per_channel=True)
    assert errors["calm"] == calm["calm"]


@given(ACTIVATIONS)
def test_activation_error_is_within_one_step(values: np.ndarray) -> None:
    found = sensitivity.quantize_activation(values)
    step = (max(values.max(), 0) - min(values.min(), 0)) / 255
    assert np.abs(found - values).max() <= step * 1.001 + 1e-30
    assert (found[values == 0] == 0).all()


@given(ACTIVATIONS, st.booleans())
def test_weight_error_is_within_half_a_step_of_its_channel(values: np.ndarray, per_channel: bool) -> None:
    found = sensitivity.quantize_weight(values, 127, per_channel)
    peak = np.abs(values).max(axis=0) if per_channel else np.abs(values).max()
    assert (np.abs(found - values) <= peak / 127 * 0.5001 + 1e-30).all()
