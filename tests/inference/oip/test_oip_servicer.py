"""Every method of the protocol against the real server, with what perf_analyzer and the C++ client read in mind."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hone.inference.v1 import inference_pb2
from hone.oip.v1 import model_config_pb2
from hone.oip.v1 import open_inference_pb2 as pb

from services.backends import RunError
from services.backends.datatypes import DATATYPES
from services.backends.onnxruntime import OnnxRuntimeBackend
from services.chassis.errors import PUSHBACK_KEY
from services.inference.oip import wire
from services.inference.servicer import NAME
from services.repository.store import Repository
from tests.inference.conftest import Door, opened
from tests.inference.oip.conftest import LABELS, MAX_TOKENS, Protocol, arrays_of, infer, logits, refused

pytestmark = pytest.mark.asyncio(loop_scope="module")

X = np.arange(6, dtype=np.float32).reshape(2, 3)
_fresh = itertools.count(1_000)
IDS, MASK = np.int64([[2, 3, 4], [6, 1, 1]]), np.int64([[1, 1, 1], [1, 0, 0]])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(small: Repository) -> AsyncIterator[Door]:
    async with opened(small, max_rows=8, queue_rows=64) as opened_door:
        yield opened_door


@pytest.fixture
def call(door: Door) -> Protocol:
    return Protocol(door.channel)


# Answers


async def test_raw_is_answered_raw_and_typed_typed(call: Protocol) -> None:
    raw = await call("ModelInfer", infer("plain", x=X, id="raw"))
    typed = await call("ModelInfer", infer("plain", x=X, id="typed", raw=False))
    assert (raw.id, len(raw.raw_output_contents), raw.outputs[0].HasField("contents")) == ("raw", 2, False)
    assert (typed.id, len(typed.raw_output_contents)) == ("typed", 0)
    for response in (raw, typed):
        assert (response.model_name, response.model_version) == ("plain", "1")
        np.testing.assert_array_equal(arrays_of(response)["doubled"], 2 * X)
        np.testing.assert_array_equal(arrays_of(response)["total"], X.sum(1))


async def test_typed_contents_of_every_datatype(call: Protocol) -> None:
    sent = {f"in_{name}": np.array([[0, 1], [1, 0]], dtype) for name, dtype in DATATYPES.items() if name != "FP16"}
    raw = infer("echo", in_FP16=np.float16([[0, 1], [1, 0]]), **sent)
    response = await call("ModelInfer", raw)
    kept = [output for output in raw.inputs if output.datatype != "FP16"]
    assert len(response.raw_output_contents) == len(DATATYPES)  # one for each output, FP16 among them
    typed = infer("echo", raw=False, **sent)
    typed.inputs.add(name="in_FP16", datatype="FP16", shape=[2, 2])
    error = await refused(call("ModelInfer", typed))
    assert error.details().startswith("inputs[in_FP16].contents: ")
    assert len(kept) == len(sent)


async def test_an_answer_that_holds_fp16_is_raw_even_when_asked_typed(call: Protocol, door: Door) -> None:
    from services.inference.calls import Result, Served
    from services.inference.oip.answer_wire import write_answer
    from services.inference.oip.request_wire import read_call

    request = infer("plain", x=X, raw=False)
    outputs = {"half": np.float16([[1, 2]]), "whole": np.float32([[3]])}
    response = write_answer(request, read_call(request), Result(outputs, Served("plain", 1, "", 0, 0, 1, 0, 0, 0)), "here")
    assert len(response.raw_output_contents) == 2
    np.testing.assert_array_equal(arrays_of(response)["half"], outputs["half"])


async def test_typed_texts_and_typed_classes(call: Protocol) -> None:
    request = pb.ModelInferRequest(model_name="texts")
    request.inputs.add(name="text", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"one two", b"one"])
    found = arrays_of(await call("ModelInfer", request))
    np.testing.assert_array_equal(found["logits"], logits(2, 1))
    request.outputs.add(name="logits").parameters["classification"].int64_param = 1
    response = await call("ModelInfer", request)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [2, 1])
    assert list(response.outputs[0].contents.bytes_contents) == [b"4.000000:1:long", b"2.000000:1:long"]
    assert not response.raw_output_contents


async def test_the_answer_tells_where_its_time_went(call: Protocol) -> None:
    x = np.full((2, 3), 77, np.float32)
    first = (await call("ModelInfer", infer("plain", x=x))).parameters
    again = (await call("ModelInfer", infer("plain:canary", x=x))).parameters
    named = await call("ModelInfer", infer("plain", x=x, model_version="1"))
    assert (first["hone_variant"].string_param, first["hone_replica"].string_param) == ("stable", "here")
    assert first["hone_cached_rows"].int64_param == 0
    assert first["hone_batch_rows"].int64_param >= 1
    assert min(first[f"hone_{name}_ns"].int64_param for name in ("queue", "compute")) > 0
    assert (again["hone_variant"].string_param, again["hone_cached_rows"].int64_param) == ("canary", 2)
    assert (again["hone_batch_rows"].int64_param, again["hone_compute_ns"].int64_param) == (0, 0)
    assert (named.parameters["hone_variant"].string_param, named.model_name) == ("", "plain")


async def test_equal_bytes_of_another_shape_are_another_question(call: Protocol) -> None:
    flat = np.arange(6, dtype=np.float32)
    for rows, size in ((2, 3), (3, 2), (1, 6), (6, 1)):
        response = await call("ModelInfer", infer("wide", x=flat.reshape(rows, size)))
        np.testing.assert_array_equal(arrays_of(response)["sum"], flat.reshape(rows, size).sum(1))
        assert response.parameters["hone_cached_rows"].int64_param == 0


async def test_another_choice_of_outputs_is_another_question(call: Protocol) -> None:
    x = np.full((1, 3), 5, np.float32)
    every = await call("ModelInfer", infer("plain", x=x))
    one = await call("ModelInfer", infer("plain", x=x, outputs=["total"]))
    assert [output.name for output in every.outputs] == ["doubled", "total"]
    assert ([output.name for output in one.outputs], one.raw_output_contents[0]) == (["total"], np.float32(15).tobytes())


async def test_three_one_row_requests_at_once_get_one_row_each(call: Protocol) -> None:
    rows = [np.full((1, 3), 200 + index, np.float32) for index in range(3)]
    responses = await asyncio.gather(*(call("ModelInfer", infer("plain", x=row)) for row in rows))
    for row, response in zip(rows, responses, strict=True):
        assert list(response.outputs[0].shape) == [1, 3]
        np.testing.assert_array_equal(arrays_of(response)["doubled"], 2 * row)


async def test_our_own_door_and_this_one_share_answers(call: Protocol, door: Door) -> None:
    await call("ModelInfer", infer("texts", input_ids=IDS, attention_mask=MASK))
    mine = inference_pb2.NamedTensor(name="input_ids", tensor={"datatype": "INT64", "shape": [1, 3], "data": IDS[0].tobytes()})
    answer = await door.stub.Predict(inference_pb2.PredictRequest(model="texts", inputs=[mine]))
    assert answer.served.cached_rows == 1


# Refusals


def with_parameter(name: str, **value: Any) -> pb.ModelInferRequest:
    """A request for rows that nobody else asks for."""
    request = infer("plain", x=np.full((1, 3), next(_fresh), np.float32))
    request.parameters[name].CopyFrom(pb.InferParameter(**value))
    return request


@pytest.mark.parametrize(
    ("request_", "code", "begins"),
    [
        (pb.ModelInferRequest(), "INVALID_ARGUMENT", "model name"),
        (pb.ModelInferRequest(model_name="plain"), "INVALID_ARGUMENT", "inputs: "),
        (infer("to rch", x=X), "INVALID_ARGUMENT", "model name"),
        (infer("plain", x=X, model_version="one"), "INVALID_ARGUMENT", "model_version: "),
        (infer("plain", x=X, model_version="0"), "INVALID_ARGUMENT", "version"),
        (infer("plain:canary", x=X, model_version="1"), "INVALID_ARGUMENT", "model_version: "),
        (infer("nobody", x=X), "NOT_FOUND", ""),
        (infer("plain:beta", x=X), "NOT_FOUND", ""),
        (infer("plain", x=X, model_version="9"), "NOT_FOUND", ""),
        (infer("plain", x=X, model_version="2"), "FAILED_PRECONDITION", "model: plain@2"),
        (infer("plain", x=np.zeros((9, 3), np.float32)), "INVALID_ARGUMENT", "inputs: must be 1 to 8 rows"),
        (infer("plain", x=X.astype(np.float64)), "INVALID_ARGUMENT", "inputs[x].datatype: "),
        (infer("plain", x=X[:, :2].copy()), "INVALID_ARGUMENT", "inputs[x].shape: "),
        (infer("plain", x=X, y=X), "INVALID_ARGUMENT", "inputs[y].name: "),
        (infer("plain", x=X, outputs=["total", "z"]), "INVALID_ARGUMENT", "outputs[1].name: "),
        (infer("texts", input_ids=IDS + 100), "INVALID_ARGUMENT", "inputs[input_ids]: "),
        (infer("texts", input_ids=IDS, attention_mask=IDS), "INVALID_ARGUMENT", "inputs[attention_mask]: "),
        (infer("texts", input_ids=np.ones((1, MAX_TOKENS + 1), np.int64)), "INVALID_ARGUMENT", "inputs[input_ids].shape: "),
        (with_parameter("priority", uint64_param=11), "INVALID_ARGUMENT", "parameters[priority]: "),
        (with_parameter("priority", int64_param=-1), "INVALID_ARGUMENT", "parameters[priority]: "),
        (with_parameter("timeout", string_param="1"), "INVALID_ARGUMENT", "parameters[timeout]: "),
        (with_parameter("triton_mine", bool_param=True), "INVALID_ARGUMENT", "parameters[triton_mine]: "),
        (with_parameter("sequence_id", string_param="a"), "UNIMPLEMENTED", "parameters[sequence_id]: sequences are not offered"),
        (with_parameter("timeout", int64_param=1), "DEADLINE_EXCEEDED", ""),
    ],
)  # fmt: skip
async def test_a_refusal_has_its_code_and_names_the_field(call: Protocol, request_: Any, code: str, begins: str) -> None:
    error = await refused(call("ModelInfer", request_))
    assert (error.code().name, error.details()[: len(begins)]) == (code, begins), error.details()


async def test_a_backend_that_fails_is_internal_and_tells_nothing(call: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RunError("/secret/path")

    monkeypatch.setattr(OnnxRuntimeBackend, "run", fail)
    error = await refused(call("ModelInfer", with_parameter("hone_bypass_cache", bool_param=True)))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()
    told = [each async for each in call.stream([with_parameter("hone_bypass_cache", bool_param=True)])]
    assert told[0].error_message.startswith("internal error ")
    assert told[0].infer_response.parameters["hone_status"].string_param == "INTERNAL"


@pytest.mark.parametrize(("triton_codes", "code"), [(False, grpc.StatusCode.RESOURCE_EXHAUSTED), (True, grpc.StatusCode.UNAVAILABLE)])
async def test_a_full_queue_in_grpcs_code_or_in_tritons(small: Repository, triton_codes: bool, code: grpc.StatusCode) -> None:
    async with opened(small, oip_triton_codes=triton_codes, queue_rows=4, max_rows=4, batch_rows=1, answers_bytes=0) as door:
        call = Protocol(door.channel)
        rows = [np.full((4, 3), index, np.float32) for index in range(40)]
        outcomes = await asyncio.gather(*(call("ModelInfer", infer("plain", x=each)) for each in rows), return_exceptions=True)
        late = await refused(call("ModelInfer", with_parameter("timeout", int64_param=1)))
    refusals = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert {error.code() for error in refusals} == {code}
    assert all(int(dict(error.trailing_metadata())[PUSHBACK_KEY]) > 0 for error in refusals)
    assert late.code() is (code if triton_codes else grpc.StatusCode.DEADLINE_EXCEEDED)


# Health and reflection


async def test_readiness_is_that_of_the_service(small: Repository) -> None:
    async with opened(small, begin=False) as door:
        call, health = Protocol(door.channel), health_pb2_grpc.HealthStub(door.channel)
        for ready in (False, True):
            for name in (NAME, wire.NAME):
                await door.server.set_ready(name, ready)
            assert (await call("ServerLive")).live
            assert (await call("ServerReady")).ready is ready
            status = (await health.Check(health_pb2.HealthCheckRequest(service=wire.NAME))).status
            assert (status == health_pb2.HealthCheckResponse.SERVING) is ready
        assert not (await call("ModelReady", pb.ModelReadyRequest(name="plain"))).ready  # nothing has been loaded
        await door.models.begin()
        told = {("plain", ""): True, ("plain", "1"): True, ("plain:canary", ""): True, ("plain", "2"): False, ("nobody", ""): False}
        for (name, version), ready in told.items():
            assert (await call("ModelReady", pb.ModelReadyRequest(name=name, version=version))).ready is ready
        error = await refused(call("ModelReady", pb.ModelReadyRequest(name="no body")))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_reflection_describes_the_protocol_under_its_own_names(door: Door) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(door.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=wire.NAME),
        reflection_pb2.ServerReflectionRequest(file_by_filename="inference/model_config.proto"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.Nothing"),
    ]
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    assert {wire.NAME, NAME} <= {service.name for service in answers[0].list_services_response.service}
    files = b"".join(answers[1].file_descriptor_response.file_descriptor_proto)
    assert b"ModelInferRequest" in files
    assert b".inference.ModelConfig" in files
    assert b"hone.oip" not in files
    assert answers[2].file_descriptor_response.file_descriptor_proto
    assert b"hone.inference.v1" in answers[3].file_descriptor_response.file_descriptor_proto[0]
    assert answers[4].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_a_method_that_nobody_knows_is_unimplemented(call: Protocol, door: Door) -> None:
    for method in (f"/{wire.NAME}/Nothing", "/hone.oip.v1.GRPCInferenceService/ServerLive"):
        error = await refused(door.channel.unary_unary(method)(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_calls_are_counted_by_their_method(call: Protocol, door: Door) -> None:
    labels = {"grpc_service": wire.NAME, "grpc_method": "ServerLive", "grpc_code": "OK"}
    before = door.server.registry.get_sample_value("grpc_server_handled_total", labels) or 0.0
    await call("ServerLive")
    assert door.server.registry.get_sample_value("grpc_server_handled_total", labels) == before + 1


# What perf_analyzer reads


async def test_the_server_names_only_extensions_that_work(call: Protocol) -> None:
    found = await call("ServerMetadata")
    assert (found.name, bool(found.version)) == ("hone", True)
    assert {"statistics", "model_configuration", "schedule_policy", "classification", "parameters", "model_repository"} == set(
        found.extensions
    )


async def test_metadata_of_a_text_model(call: Protocol) -> None:
    found = await call("ModelMetadata", pb.ModelMetadataRequest(name="texts"))
    assert (found.name, list(found.versions), found.platform) == ("texts", ["1"], "onnxruntime_onnx")
    assert [(each.name, each.datatype, list(each.shape)) for each in found.inputs] == [
        ("input_ids", "INT64", [-1, -1]),
        ("attention_mask", "INT64", [-1, -1]),
        ("text", "BYTES", [-1, 1]),
    ]
    assert [(each.name, each.datatype, list(each.shape)) for each in found.outputs] == [("logits", "FP32", [-1, 3])]
    assert found.properties["max_tokens"] == str(MAX_TOKENS)
    assert json.loads(found.properties["labels"]) == list(LABELS)


async def test_the_configuration_of_a_text_model(call: Protocol) -> None:
    config = (await call("ModelConfig", pb.ModelConfigRequest(name="texts"))).config
    assert (config.name, config.platform, config.backend, config.max_batch_size) == ("texts", "onnxruntime_onnx", "onnxruntime", 8)
    assert [(each.name, model_config_pb2.DataType.Name(each.data_type), list(each.dims), each.optional) for each in config.input] == [
        ("input_ids", "TYPE_INT64", [-1], True),
        ("attention_mask", "TYPE_INT64", [-1], True),
        ("text", "TYPE_STRING", [1], True),
    ]
    assert [(each.name, list(each.dims)) for each in config.output] == [("logits", [3])]
    assert config.HasField("dynamic_batching")
    assert (config.dynamic_batching.priority_levels, config.dynamic_batching.default_priority_level) == (10, 10)
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 64
    assert config.dynamic_batching.default_queue_policy.allow_timeout_override
    assert list(config.version_policy.specific.versions) == [1]
    assert (config.response_cache.enable, config.model_transaction_policy.decoupled) == (True, False)


@pytest.mark.parametrize("name", ["plain", "plain:canary", "echo", "texts"])
async def test_configuration_and_metadata_agree_as_perf_analyzer_expects(call: Protocol, name: str) -> None:
    metadata = MessageToDict(await call("ModelMetadata", pb.ModelMetadataRequest(name=name)), preserving_proto_field_name=True)
    config = MessageToDict(await call("ModelConfig", pb.ModelConfigRequest(name=name)), preserving_proto_field_name=True)["config"]
    assert metadata["name"] == config["name"] == name  # it goes on to ask with the name that it finds here
    for side, plural in (("input", "inputs"), ("output", "outputs")):
        shapes = {each["name"]: each["shape"] for each in metadata[plural]}
        assert all(shape[0] == "-1" for shape in shapes.values())
        assert {each["name"]: each.get("dims", []) for each in config[side]} == {each: shape[1:] for each, shape in shapes.items()}


async def test_versions_of_what_was_asked_for(call: Protocol, door: Door) -> None:
    await door.models.load("plain@2")
    for name, version, versions in (("plain", "", ["1", "2"]), ("plain", "2", ["2"]), ("plain:canary", "", ["1"])):
        found = await call("ModelMetadata", pb.ModelMetadataRequest(name=name, version=version))
        assert list(found.versions) == versions
        found = await call("ModelStatistics", pb.ModelStatisticsRequest(name=name, version=version))
        assert [each.version for each in found.model_stats] == versions
        assert {each.name for each in found.model_stats} == {name}
    door.models.unload("plain@2")


async def test_codes_of_questions_about_a_model(call: Protocol) -> None:
    asked = [("nobody", "", "NOT_FOUND"), ("plain", "9", "NOT_FOUND"), ("plain", "x", "INVALID_ARGUMENT"), ("", "1", "INVALID_ARGUMENT")]
    for method in ("ModelMetadata", "ModelConfig", "ModelStatistics"):
        ask = getattr(pb, f"{method}Request")
        for name, version, code in asked:
            assert (await refused(call(method, ask(name=name, version=version)))).code().name == code


async def counted(call: Protocol, name: str) -> pb.ModelStatistics:
    (found,) = (await call("ModelStatistics", pb.ModelStatisticsRequest(name=name, version="1"))).model_stats
    return found


async def test_statistics_grow_as_perf_analyzer_reads_them(call: Protocol) -> None:
    x = np.float32([[[index + 0.5] * 4] for index in range(3)])  # three requests of a row, of a size that no other test asks
    before = await counted(call, "wide")
    for row in x:
        await call("ModelInfer", infer("wide", x=row))
    computed = await counted(call, "wide")
    for row in x:
        await call("ModelInfer", infer("wide", x=row))
    after = await counted(call, "wide")

    def grown(field: str, since: pb.ModelStatistics, until: pb.ModelStatistics) -> tuple[int, int]:
        one, two = (getattr(each.inference_stats, field) for each in (since, until))
        return two.count - one.count, two.ns - one.ns

    for field in ("success", "queue", "compute_infer", "compute_output", "compute_input", "cache_miss"):
        assert grown(field, before, computed)[0] == 3, field
    for field in ("success", "queue", "compute_infer", "compute_output", "cache_miss"):
        assert grown(field, before, computed)[1] > 0, field
    assert grown("cache_hit", before, computed) == (0, 0)
    for field, count in (("success", 3), ("queue", 3), ("cache_hit", 3), ("compute_infer", 0), ("cache_miss", 0), ("fail", 0)):
        assert grown(field, computed, after)[0] == count, field
    assert computed.inference_count - before.inference_count == 3
    assert (after.inference_count, after.execution_count) == (computed.inference_count, computed.execution_count)
    assert 1 <= computed.execution_count - before.execution_count <= 3
    assert after.last_inference >= computed.last_inference > 1_600_000_000_000
    assert sum(batch.compute_infer.count for batch in after.batch_stats) == after.execution_count
    assert sum(batch.batch_size * batch.compute_infer.count for batch in after.batch_stats) == after.inference_count


async def test_failures_are_counted_too(call: Protocol) -> None:
    before = await counted(call, "plain")
    await refused(call("ModelInfer", with_parameter("timeout", int64_param=1)))
    after = await counted(call, "plain")
    assert after.inference_stats.fail.count == before.inference_stats.fail.count + 1
    assert after.inference_stats.success.count == before.inference_stats.success.count


async def test_statistics_of_every_model(call: Protocol) -> None:
    found = await call("ModelStatistics", pb.ModelStatisticsRequest())
    assert {each.name for each in found.model_stats} == {"plain", "echo", "wide", "texts"}
    assert all(each.version.isdigit() for each in found.model_stats)


# The repository


async def test_the_index_has_states_in_tritons_words(call: Protocol, door: Door) -> None:
    every = (await call("RepositoryIndex")).models
    assert {(each.name, each.version, each.state) for each in every if each.version == "1"} == {
        (name, "1", "READY") for name in ("plain", "echo", "wide", "texts")
    }
    ready = (await call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True))).models
    assert {each.state for each in ready} == {"READY"}
    error = await refused(call("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="other")))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("method", "name", "code"),
    [
        ("RepositoryModelLoad", "nobody", "NOT_FOUND"),
        ("RepositoryModelLoad", "plain@9", "NOT_FOUND"),
        ("RepositoryModelLoad", "pl ain", "INVALID_ARGUMENT"),
        ("RepositoryModelUnload", "plain@1", "FAILED_PRECONDITION"),
        ("RepositoryModelUnload", "plain", "FAILED_PRECONDITION"),
        ("RepositoryModelUnload", "plain@9", "NOT_FOUND"),
        ("RepositoryModelUnload", "", "INVALID_ARGUMENT"),
    ],
)
async def test_codes_of_loading_and_unloading(call: Protocol, method: str, name: str, code: str) -> None:
    error = await refused(call(method, getattr(pb, f"{method}Request")(model_name=name)))
    assert error.code().name == code


# Streams


async def test_a_stream_tells_errors_with_their_id_and_goes_on(call: Protocol) -> None:
    requests = [infer("plain", x=X, id="1"), infer("nobody", x=X, id="2"), pb.ModelInferRequest(id="3"), infer("plain", x=X, id="4")]
    told = [each async for each in call.stream(requests)]
    assert [each.infer_response.id for each in told] == ["1", "2", "3", "4"]
    assert [bool(each.error_message) for each in told] == [False, True, True, False]
    assert told[1].infer_response.parameters["hone_status"].string_param == "NOT_FOUND"
    assert told[0].infer_response.parameters["triton_final_response"].bool_param
    np.testing.assert_array_equal(arrays_of(told[3].infer_response)["total"], X.sum(1))


async def test_with_the_header_the_first_error_ends_the_stream(call: Protocol) -> None:
    requests = [infer("plain", x=X, id="1"), infer("nobody", x=X, id="2"), infer("plain", x=X, id="3")]
    stream = call.stream(requests, metadata=[("triton_grpc_error", "true")])
    assert (await stream.read()).infer_response.id == "1"
    assert (await refused(stream.read())).code() is grpc.StatusCode.NOT_FOUND


async def test_a_silent_stream_is_ended(small: Repository) -> None:
    async with opened(small, oip_stream_idle_s=0.05) as door:
        silent = asyncio.Event()

        async def requests() -> AsyncIterator[pb.ModelInferRequest]:
            yield infer("plain", x=X)
            await silent.wait()

        stream = Protocol(door.channel).stream(requests())
        assert not (await stream.read()).error_message
        error = await refused(stream.read())
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "no request came" in error.details()


async def test_a_stop_answers_a_streams_requests_and_ends_it_unavailable(small: Repository) -> None:
    silent = asyncio.Event()
    told: list[str] = []
    first = asyncio.Event()

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for index in range(20):
            yield infer("plain", x=X + index, id=str(index))
        await silent.wait()

    async def read(call: Protocol) -> grpc.StatusCode:
        try:
            async for each in call.stream(requests()):
                told.append(each.infer_response.id)
                if len(told) == 20:
                    first.set()
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async with AsyncExitStack() as stack:
        door = await stack.enter_async_context(opened(small))
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{door.server.port}")  # outlives the server
        reading = asyncio.create_task(read(Protocol(channel)))
        await first.wait()
        begun = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - begun < 15  # an open stream would have taken the whole grace, 20 s
    assert await reading is grpc.StatusCode.UNAVAILABLE
    await channel.close()
    assert told == [str(index) for index in range(20)]
