"""Our client and the protocol's clients in one process: names of messages must not collide, whichever is imported first."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("hone, hone.aio, hone.oip.v1.open_inference_pb2", "tritonclient.grpc, tritonclient.grpc.aio")
USE = """
from hone.oip.v1 import open_inference_pb2 as ours
from tritonclient.grpc import service_pb2 as theirs
from services.inference.oip import wire

request = theirs.ModelInferRequest(model_name="m", id="1", raw_input_contents=[b"abc"])
request.inputs.add(name="x", datatype="FP32", shape=[1, 3]).contents.fp32_contents.append(2.5)
request.parameters["timeout"].int64_param = 5
read = ours.ModelInferRequest.FromString(request.SerializeToString())
assert read.SerializeToString() == request.SerializeToString()
assert theirs.ModelInferRequest.DESCRIPTOR.full_name == "inference.ModelInferRequest"
assert wire.reflected().FindMessageTypeByName("inference.ModelInferRequest").full_name == "inference.ModelInferRequest"
print("one process")
"""


@pytest.mark.parametrize("order", list(itertools.permutations(PACKAGES)), ids=["ours first", "theirs first"])
def test_both_are_imported_and_speak_the_same_bytes(order: tuple[str, ...]) -> None:
    program = "\n".join(f"import {names}" for names in order) + USE
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("one process", 0), done.stderr


def test_every_field_has_the_protocols_number_and_type() -> None:
    """tritonclient's own descriptors are the protocol, as far as this contract goes: what it has it has as they do."""
    from google.protobuf.descriptor import Descriptor
    from hone.oip.v1 import model_config_pb2, open_inference_pb2
    from tritonclient.grpc import model_config_pb2 as their_config
    from tritonclient.grpc import service_pb2 as their_service

    def check(ours: Descriptor, theirs: Descriptor) -> int:
        known = {field.number: field for field in theirs.fields}
        for field in ours.fields:
            if (ours.name, field.name) == ("ModelMetadataResponse", "properties"):  # the Open Inference Protocol's, not Triton's
                continue
            same = known[field.number]
            assert (field.name, field.type, field.is_repeated) == (same.name, same.type, same.is_repeated), ours.full_name
        nested = theirs.nested_types_by_name
        return 1 + sum(check(inner, nested[inner.name]) for inner in ours.nested_types if inner.name in nested)

    pairs = ((open_inference_pb2, their_service), (model_config_pb2, their_config))
    checked = sum(
        check(message, theirs.DESCRIPTOR.message_types_by_name[name])
        for ours, theirs in pairs
        for name, message in ours.DESCRIPTOR.message_types_by_name.items()
    )
    assert checked > 60
    for ours, theirs in pairs:
        for name, enum in ours.DESCRIPTOR.enum_types_by_name.items():
            found = theirs.DESCRIPTOR.enum_types_by_name[name].values_by_name
            assert {value.name: value.number for value in enum.values} == {value.name: value.number for value in found.values()}
    methods = {method.name: method for method in their_service.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
    for method in open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        same = methods.pop(method.name)
        assert (method.input_type.name, method.output_type.name) == (same.input_type.name, same.output_type.name)
        assert (method.client_streaming, method.server_streaming) == (same.client_streaming, same.server_streaming)
    assert not methods
