import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from services.backends.onnx_wire import has_external_data, operator_domains


def model(tensor: onnx.TensorProto, *, nested: bool = False, domain: str = "") -> memoryview:
    """`tensor` as an initializer, or as a Constant inside the branch of an If."""
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    if nested:
        branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor)], "branch", [], [end])
        nodes, weights = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], []
    else:
        nodes, weights = [helper.make_node("Identity", [tensor.name], ["y"], domain=domain)], [tensor]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("c", TensorProto.BOOL, [1])], [end], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain or "ai.onnx.ml", 1)]
    return memoryview(helper.make_model(graph, opset_imports=opsets).SerializeToString())


def plain() -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(2, np.float32), "w")


def external() -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    return tensor


@pytest.mark.parametrize("nested", [False, True])
def test_external_data_is_found_wherever_it_is(nested: bool) -> None:
    assert has_external_data(model(external(), nested=nested))
    assert not has_external_data(model(plain(), nested=nested))


def test_domains() -> None:
    assert operator_domains(model(plain())) == {"", "ai.onnx.ml"}
    assert operator_domains(model(plain(), domain="evil.org")) == {"", "evil.org"}


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read_but_never_hangs(data: bytes) -> None:
    for read in (operator_domains, has_external_data):
        try:
            read(memoryview(data))
        except (ValueError, IndexError, RecursionError):
            continue
