"""A request of the protocol as the core's: raw and typed forms, bytes, and every lie about a size."""

import struct
from typing import Any

import numpy as np
import pytest
from hone.oip.v1 import open_inference_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from services.backends.datatypes import DATATYPES
from services.chassis.faults import InvalidField
from services.inference.oip.bytes_tensor import decode_bytes, encode_bytes
from services.inference.oip.faults import NotOffered
from services.inference.oip.request_wire import read_call, reference_of
from tests.inference.oip.conftest import CONTENTS_OF, infer

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def one(name: str = "x", datatype: str = "FP32", shape: Any = (2, 3), raw: bytes | None = None, **contents: Any) -> pb.ModelInferRequest:
    """A request with one input; in raw form where `raw` is given."""
    request = pb.ModelInferRequest(model_name="plain", raw_input_contents=[] if raw is None else [raw])
    entry = request.inputs.add(name=name, datatype=datatype, shape=shape)
    if contents:
        entry.contents.CopyFrom(pb.InferTensorContents(**contents))
    return request


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


# Numbers


@given(
    st.sampled_from(sorted(DATATYPES)).flatmap(lambda name: st_np.arrays(DATATYPES[name], st_np.array_shapes(max_dims=4, max_side=4))),
    st.booleans(),
)
def test_an_array_is_read_as_it_was_sent(array: np.ndarray, raw: bool) -> None:
    call = read_call(infer("plain", raw=raw or array.dtype == np.float16, x=array))
    assert call.inputs["x"].dtype == array.dtype
    np.testing.assert_array_equal(call.inputs["x"], array)
    assert call.raw is (raw or array.dtype == np.float16)


def test_raw_numbers_are_not_copied() -> None:
    array = read_call(infer("plain", x=X)).inputs["x"]
    assert array.base is not None
    assert not array.flags.writeable


def test_bf16_is_the_upper_half_of_an_fp32() -> None:
    exact = np.float32([1.5, -0.0, np.inf, 2.0**-100])
    halves = (exact.view(np.uint32) >> 16).astype("<u2")
    np.testing.assert_array_equal(read_call(one(datatype="BF16", shape=[4], raw=halves.tobytes())).inputs["x"], exact)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (one(raw=bytes(23)), "inputs[x]"),
        (one(raw=bytes(25)), "inputs[x]"),
        (one(raw=b""), "inputs[x]"),
        (one(shape=[], raw=bytes(4)), "inputs[x].shape"),
        (one(shape=[-1, 3], raw=bytes(24)), "inputs[x].shape"),
        (one(shape=[-2, -3], raw=bytes(24)), "inputs[x].shape"),
        (one(shape=[0, 3], raw=b""), "inputs[x].shape"),
        (one(shape=[2**62, 2**62, 4], raw=b""), "inputs[x]"),
        (one(shape=[1] * 17, raw=bytes(4)), "inputs[x].shape"),
        (one(datatype="FP31", raw=bytes(24)), "inputs[x].datatype"),
        (one(datatype="", raw=bytes(24)), "inputs[x].datatype"),
        (one(datatype="BF16", raw=bytes(24)), "inputs[x]"),
        (one(), "inputs[x]"),
        (one(fp32_contents=[1.0] * 5), "inputs[x]"),
        (one(fp32_contents=[1.0] * 7), "inputs[x]"),
        (one(fp64_contents=[1.0] * 6), "inputs[x]"),
        (one(datatype="FP31", fp32_contents=[1.0] * 6), "inputs[x].datatype"),
        (one(datatype="FP16"), "inputs[x].contents"),
        (one(datatype="BF16"), "inputs[x].contents"),
        (one(datatype="INT8", int_contents=[128] * 6), "inputs[x]"),
        (one(datatype="UINT8", uint_contents=[256] * 6), "inputs[x]"),
        (one(raw=bytes(24), fp32_contents=[1.0] * 6), "inputs[x].contents"),
        (one(raw=bytes(24), bytes_contents=[]), "inputs[x].contents"),
        (one(datatype="BYTES", raw=packed(b"a")), "inputs[x].datatype"),
    ],
)
def test_a_lie_about_a_tensor_names_it(request_: pb.ModelInferRequest, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        read_call(request_)
    assert caught.value.field == field


@pytest.mark.parametrize("extra", [1, 2])
def test_raw_entries_must_be_as_many_as_inputs(extra: int) -> None:
    more = infer("plain", x=X)
    more.raw_input_contents.extend([bytes(24)] * extra)
    fewer = infer("plain", x=X, y=X, z=X)
    del fewer.raw_input_contents[-extra:]
    for request in (more, fewer):
        with pytest.raises(InvalidField, match=r"raw_input_contents: has \d entries for \d inputs"):
            read_call(request)


@pytest.mark.parametrize("name", ["x", "text"])
def test_a_name_given_twice_is_refused(name: str) -> None:
    request = one(name, "BYTES" if name == "text" else "FP32", [1], packed(b"a") if name == "text" else bytes(4))
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])
    with pytest.raises(InvalidField) as caught:
        read_call(request)
    assert caught.value.field == "inputs[1].name"


def test_an_output_asked_twice_is_refused() -> None:
    with pytest.raises(InvalidField) as caught:
        read_call(infer("plain", x=X, outputs=["total", "doubled", "total"]))
    assert caught.value.field == "outputs[2].name"


@pytest.mark.parametrize("value", [{"string_param": "2"}, {"int64_param": -1}, {"bool_param": True}, {}])
def test_a_classification_needs_a_count(value: Any) -> None:
    wanted = {"name": "total", "parameters": {"classification": pb.InferParameter(**value)}}
    with pytest.raises(InvalidField) as caught:
        read_call(infer("plain", x=X, outputs=[wanted]))
    assert caught.value.field == "outputs[total].parameters[classification]"


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
def test_a_count_comes_as_either_integer(kind: str) -> None:
    wanted = {"name": "total", "parameters": {"classification": pb.InferParameter(**{kind: 3})}}
    request = infer("plain", x=X, outputs=[wanted])
    request.parameters["priority"].CopyFrom(pb.InferParameter(**{kind: 1}))
    request.parameters["timeout"].CopyFrom(pb.InferParameter(**{kind: 2_000_000}))
    call = read_call(request)
    assert (call.largest, call.parameters.priority, call.parameters.timeout_s) == ({"total": 3}, 9, 2.0)


# Bytes and texts


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_bytes_come_back_as_they_went(elements: list[bytes]) -> None:
    assert decode_bytes("x", encode_bytes(elements), len(elements)) == elements


@given(st.binary(max_size=40), st.integers(1, 2**40))
def test_any_bytes_are_read_whole_or_refused(data: bytes, count: int) -> None:
    try:
        elements = decode_bytes("x", data, count)
    except InvalidField:
        return
    assert encode_bytes(elements) == data
    assert len(elements) == count


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_texts_in_either_form(raw: bool, shape: list[int]) -> None:
    elements = ["naïve".encode(), b"b"]
    request = one("text", "BYTES", shape, packed(*elements)) if raw else one("text", "BYTES", shape, bytes_contents=elements)
    assert read_call(request).texts == ["naïve", "b"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (one("text", "BYTES", [1], packed(b"a")[:-1]), "inputs[text]"),
        (one("text", "BYTES", [1], packed(b"a") + b"x"), "inputs[text]"),
        (one("text", "BYTES", [2], packed(b"aaaaaaaa")), "inputs[text]"),
        (one("text", "BYTES", [1], struct.pack("<I", 2**32 - 1) + b"a"), "inputs[text]"),
        (one("text", "BYTES", [2**50], packed(b"a")), "inputs[text]"),
        (one("text", "BYTES", [2], bytes_contents=[b"a"]), "inputs[text]"),
        (one("text", "BYTES", [1, 2], packed(b"a", b"b")), "inputs[text].shape"),
        (one("text", "BYTES", [2, 1, 1], packed(b"a", b"b")), "inputs[text].shape"),
        (one("text", "BYTES", [0], b""), "inputs[text].shape"),
        (one("text", "BYTES", [2], packed(b"a", b"\xff")), "inputs[text][1]"),
        (one("text", "BYTES", [1], bytes_contents=[b"\xc3"]), "inputs[text][0]"),
    ],
)
def test_a_lie_about_texts_names_them(request_: pb.ModelInferRequest, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        read_call(request_)
    assert caught.value.field == field


def test_text_stands_alone() -> None:
    request = one("text", "BYTES", [1], packed(b"a"))
    request.inputs.add(name="input_ids", datatype="INT64", shape=[1, 1])
    request.raw_input_contents.append(bytes(8))
    with pytest.raises(InvalidField, match="'text' must be alone"):
        read_call(request)


# References


@pytest.mark.parametrize(
    ("name", "version", "reference"), [("m", "", "m"), ("m:canary", "", "m:canary"), ("m@2", "", "m@2"), ("m", "3", "m@3")]
)
def test_a_name_and_a_version_are_a_reference(name: str, version: str, reference: str) -> None:
    assert reference_of(name, version) == reference


@pytest.mark.parametrize(("name", "version"), [("m", "one"), ("m", "-1"), ("m", "1.0"), ("m", "²"), ("m:canary", "1"), ("m@1", "1")])
def test_a_version_that_is_none_is_named(name: str, version: str) -> None:
    with pytest.raises(InvalidField) as caught:
        reference_of(name, version)
    assert caught.value.field == "model_version"


# Anything


@given(st.binary(max_size=200))
def test_any_message_is_read_or_refused(data: bytes) -> None:
    request = pb.ModelInferRequest()
    try:
        request.ParseFromString(data)
    except Exception:  # not a message: gRPC refuses it before us
        return
    with_refusal(request)


@st.composite
def mutated(draw: st.DrawFn) -> pb.ModelInferRequest:
    """A good request with some of its bytes changed."""
    good = infer("plain", raw=draw(st.booleans()), x=X, outputs=["total"], id="1", model_version="1")
    data = bytearray(good.SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    request = pb.ModelInferRequest()
    try:
        request.ParseFromString(bytes(data))
    except Exception:
        return good
    return request


@given(mutated())
def test_a_mutated_request_is_read_or_refused(request_: pb.ModelInferRequest) -> None:
    with_refusal(request_)


def with_refusal(request: pb.ModelInferRequest) -> None:
    try:
        call = read_call(request)
    except (InvalidField, NotOffered):
        return
    for array in call.inputs.values():
        assert array.size > 0


def test_every_datatype_has_a_typed_form_or_is_a_half() -> None:
    assert set(CONTENTS_OF) | {"FP16"} == set(DATATYPES)
