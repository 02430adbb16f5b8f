"""The Open Inference Protocol door under abuse: messages of noise and lies, streams that trickle, callers that leave."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest
import pytest_asyncio
from hone.oip.v1 import open_inference_pb2 as pb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.repository.store import Repository
from tests.inference.conftest import Door, opened
from tests.inference.oip.conftest import Protocol, arrays_of, infer, logits, small

__all__ = ["small"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

OURS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}  # what no input may lead to
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(small: Repository) -> AsyncIterator[Door]:
    async with opened(small, max_rows=8, default_deadline_s=20, queue_rows=64) as opened_door:
        yield opened_door


@pytest.fixture
def call(door: Door) -> Protocol:
    return Protocol(door.channel)


async def outcome(call: Protocol, method: str, message: bytes | pb.ModelInferRequest) -> grpc.StatusCode:
    """The call's code; fails where it is a fault of ours."""
    code = grpc.StatusCode.OK
    try:
        await call(method, message)
    except grpc.aio.AioRpcError as error:
        code = error.code()
    assert code not in OURS, message
    return code


async def still_good(call: Protocol) -> None:
    """A good request is answered, rightly."""
    rows = np.full((1, 3), random.random(), np.float32)
    np.testing.assert_array_equal(arrays_of(await call("ModelInfer", infer("plain", x=rows)))["doubled"], 2 * rows)


# Noise


METHODS = [
    "ModelInfer",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "ServerMetadata",
    "LogSettings",
    "TraceSetting",
    "SystemSharedMemoryRegister",
    "CudaSharedMemoryStatus",
]


def examples(strategy: st.SearchStrategy[object], count: int) -> list[object]:
    """Drawn outside of the loop's tests: hypothesis calls a function once per example, and these are awaited."""
    drawn: list[object] = []

    @settings(max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def draw(example: object) -> None:
        drawn.append(example)

    draw()
    return drawn


async def test_bytes_that_are_no_message_are_told_so_at_either_door(call: Protocol, door: Door) -> None:
    noise = b"\xff\xff\xff"
    embed = door.channel.unary_unary("/hone.inference.v1.InferenceService/Embed")
    for refusal in (call("ModelInfer", noise), embed(noise)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await refusal
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "request: is not a message of the type that the method takes"
    stream = door.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(iter([noise]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_any_bytes_to_any_method_are_refused_or_answered(call: Protocol) -> None:
    for method, message in examples(st.tuples(st.sampled_from(METHODS), st.binary(max_size=200)), 200):  # type: ignore[misc]
        await outcome(call, method, message)
    await still_good(call)


def good_requests() -> Iterator[pb.ModelInferRequest]:
    """One of every kind."""
    yield infer("plain", x=X, id="a", outputs=["total"], model_version="1")
    yield infer("plain", raw=False, x=X)
    yield infer("texts", input_ids=np.int64([[2, 3]]), attention_mask=np.int64([[1, 1]]))
    request = pb.ModelInferRequest(model_name="texts", raw_input_contents=[b"\x03\0\0\0one\x03\0\0\0two"])
    request.inputs.add(name="text", datatype="BYTES", shape=[2, 1])
    request.outputs.add(name="logits").parameters["classification"].int64_param = 2
    request.parameters["priority"].uint64_param = 3
    request.parameters["timeout"].int64_param = 9_000_000
    yield request


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """A good request's bytes with some changed, cut out or put in."""
    data = bytearray(draw(st.sampled_from(list(good_requests()))).SerializeToString(deterministic=True))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
        data = data or bytearray(b"\0")
    return bytes(data)


async def test_a_good_request_with_some_bytes_changed_is_refused_or_answered(call: Protocol) -> None:
    codes = {await outcome(call, "ModelInfer", message) for message in examples(changed(), 200)}  # type: ignore[arg-type]
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= codes  # the changes are neither all fatal nor all harmless
    await still_good(call)


SHAPES = st.lists(st.one_of(st.integers(-3, 4), st.sampled_from([2**31, 2**62, -(2**63), 2**63 - 1])), max_size=20)
DATATYPES = st.sampled_from(["FP32", "FP16", "BF16", "INT64", "BYTES", "BOOL", "fp32", "", "\0", "FP32 "])
VALUES = st.one_of(
    st.builds(lambda value: pb.InferParameter(bool_param=value), st.booleans()),
    st.builds(lambda value: pb.InferParameter(int64_param=value), st.integers(-(2**63), 2**63 - 1)),
    st.builds(lambda value: pb.InferParameter(uint64_param=value), st.integers(0, 2**64 - 1)),
    st.builds(lambda value: pb.InferParameter(double_param=value), st.floats()),
    st.builds(lambda value: pb.InferParameter(string_param=value), st.sampled_from(["", "x", "\n" * 50])),
    st.just(pb.InferParameter()),
)
NAMES = st.sampled_from(["x", "text", "input_ids", "attention_mask", "token_type_ids", "", "y" * 500])


@st.composite
def lies(draw: st.DrawFn) -> pb.ModelInferRequest:
    """A well-formed message whose fields contradict one another."""
    models = st.sampled_from(["plain", "texts", "wide", "echo", "", "plain:", "@", "x" * 500])
    request = pb.ModelInferRequest(model_name=draw(models), model_version=draw(st.sampled_from(["", "1", "2", "-1", "١", "9" * 400])))
    for _ in range(draw(st.integers(0, 3))):
        entry = request.inputs.add(name=draw(NAMES), datatype=draw(DATATYPES), shape=draw(SHAPES))
        if draw(st.booleans()):
            entry.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=6)))
            entry.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=4), max_size=3)))
    request.raw_input_contents.extend(draw(st.lists(st.binary(max_size=40), max_size=3)))
    for name in draw(st.lists(st.sampled_from(["total", "logits", "", "z"]), max_size=3)):
        request.outputs.add(name=name).parameters["classification"].CopyFrom(draw(VALUES))
    for name in draw(st.lists(st.sampled_from(["priority", "timeout", "sequence_id", "hone_truncate", "hone_sticky_key"]), max_size=3)):
        request.parameters[name].CopyFrom(draw(VALUES))
    return request


async def test_a_message_of_lies_is_refused_or_answered(call: Protocol) -> None:
    drawn = examples(lies(), 120)
    for request in drawn:
        await outcome(call, "ModelInfer", request)  # type: ignore[arg-type]
    told = [each async for each in call.stream(drawn)]
    assert len(told) == len(drawn)
    assert not any("internal error" in each.error_message for each in told)
    await still_good(call)


async def test_values_that_are_no_numbers_harm_nobody_else(call: Protocol) -> None:
    mad = np.float32([[np.nan, np.inf, -np.inf], [1e-45, -0.0, 1e38]])
    sane = [np.full((1, 3), index, np.float32) for index in range(8)]
    answers = await asyncio.gather(*(call("ModelInfer", infer("plain", x=rows)) for rows in [mad, *sane]))
    np.testing.assert_array_equal(arrays_of(answers[0])["doubled"], 2 * mad)
    for rows, answer in zip(sane, answers[1:], strict=True):
        np.testing.assert_array_equal(arrays_of(answer)["doubled"], 2 * rows)
    request = infer("plain", x=mad, outputs=[{"name": "doubled", "parameters": {"classification": pb.InferParameter(int64_param=3)}}])
    await call("ModelInfer", request)


# Callers that trickle, leave or flood


async def test_streams_that_trickle_hold_up_nobody(door: Door, call: Protocol) -> None:
    silent = asyncio.Event()

    async def trickle(index: int) -> AsyncIterator[pb.ModelInferRequest]:
        yield infer("plain", x=X + index, id=str(index))
        await silent.wait()

    streams = [call.stream(trickle(index)) for index in range(64)]
    assert {(await stream.read()).infer_response.id for stream in streams} == {str(index) for index in range(64)}
    for _ in range(20):
        await still_good(call)
    for stream in streams:
        stream.cancel()
    silent.set()
    await still_good(call)


async def test_streams_that_are_cut_off_leave_nothing_in_the_queue(door: Door, call: Protocol) -> None:
    def requests() -> list[pb.ModelInferRequest]:
        return [infer("plain", x=np.full((1, 3), random.random(), np.float32)) for _ in range(50)]

    streams = [call.stream(requests()) for _ in range(10)]
    for stream in streams:
        await stream.read()
        stream.cancel()
    await still_good(call)
    (served,) = [each for each in door.models.all() if each.manifest.reference == "plain@1"]
    assert served.engine is not None
    async with asyncio.timeout(20):
        while served.engine.queued_rows:
            await still_good(call)


async def test_half_of_the_callers_cancel_and_the_rest_get_their_own(call: Protocol) -> None:
    draw = random.Random(3)
    words = ["one", "two", "three", "four"]
    asked = [draw.choices(words, k=draw.randint(1, 6)) for _ in range(80)]

    def request(index: int) -> pb.ModelInferRequest:
        made = pb.ModelInferRequest(model_name="texts", id=str(index))
        made.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(" ".join(asked[index]).encode())
        made.parameters["hone_bypass_cache"].bool_param = True
        return made

    calls = [asyncio.create_task(call("ModelInfer", request(index))) for index in range(60)]
    for index in draw.sample(range(60), 30):
        calls[index].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    stayed = [index for index, answer in enumerate(answers) if isinstance(answer, pb.ModelInferResponse)]
    assert len(stayed) == 30
    for index in stayed:
        answer = answers[index]
        assert isinstance(answer, pb.ModelInferResponse)
        assert answer.id == str(index)
        np.testing.assert_array_equal(arrays_of(answer)["logits"], logits(len(asked[index])))


async def test_a_message_over_the_limit_is_refused_and_the_connection_goes_on(small: Repository) -> None:
    async with opened(small, max_message_bytes=1 << 16) as door:
        call = Protocol(door.channel)
        giant = infer("wide", x=np.zeros((1, 1 << 15), np.float32))
        assert await outcome(call, "ModelInfer", giant) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await still_good(call)


async def test_connections_that_come_and_go_leave_the_server_well(door: Door, call: Protocol) -> None:
    for _ in range(60):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{door.server.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            asked = asyncio.ensure_future(Protocol(channel)("ServerLive"))
            if random.random() < 0.5:
                await asked
            else:
                asked.cancel()
    await still_good(call)
