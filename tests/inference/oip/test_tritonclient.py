"""The unmodified tritonclient against the real server: sync, asyncio and streams; numbers, halves and bytes."""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from services.backends.datatypes import DATATYPES
from services.repository.store import Repository
from tests.inference.conftest import Door, opened
from tests.inference.oip.conftest import LABELS, logits

pytestmark = pytest.mark.asyncio(loop_scope="module")
WAIT_S = 60


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(small: Repository) -> AsyncIterator[Door]:
    async with opened(small, max_rows=8) as opened_door:
        yield opened_door


@pytest.fixture
def ask(door: Door) -> Callable[[Callable[[Any], Any]], Any]:
    """Runs a function of the sync client in a thread: the server is on this loop."""

    def run(work: Callable[[Any], Any]) -> Any:
        def with_client() -> Any:
            with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{door.server.port}") as client:
                return work(client)

        return asyncio.to_thread(with_client)

    return run


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(door: Door) -> AsyncIterator[Any]:
    async with tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{door.server.port}") as made:
        yield made


def tensor(name: str, array: np.ndarray, datatype: str = "", package: Any = tritonclient.grpc) -> Any:
    datatype = datatype or next((key for key, dtype in DATATYPES.items() if np.dtype(dtype) == array.dtype), "BYTES")
    return package.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)


def texts(*values: str) -> Any:
    return tensor("text", np.array([value.encode() for value in values], np.object_))


X = np.arange(6, dtype=np.float32).reshape(2, 3)
NO_OUTPUT = tritonclient.grpc.InferRequestedOutput("z")
EVERY = {
    name: np.array([[0, 1], [1, 0]], dtype) if name == "BOOL" else np.array([[1, 2], [3, 4]], dtype) for name, dtype in DATATYPES.items()
}


async def test_sync_infer_and_every_question_about_the_server(ask: Any) -> None:
    def work(client: Any) -> Any:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("plain")
        assert client.is_model_ready("plain", "1")
        assert not client.is_model_ready("nobody")
        assert not client.is_model_ready("plain", "2")
        assert client.get_server_metadata().name == "hone"
        metadata = client.get_model_metadata("plain", as_json=True)
        config = client.get_model_config("plain", as_json=True)["config"]
        index = client.get_model_repository_index(as_json=True)["models"]
        answer = client.infer("plain", [tensor("x", X)], request_id="7", model_version="1")
        return metadata, config, index, answer

    metadata, config, index, answer = await ask(work)
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "3"]}]
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["3"]}]
    assert {(model["name"], model["version"], model["state"]) for model in index} >= {("plain", "1", "READY"), ("texts", "1", "READY")}
    np.testing.assert_array_equal(answer.as_numpy("doubled"), 2 * X)
    np.testing.assert_array_equal(answer.as_numpy("total"), X.sum(1))
    assert (answer.get_response().id, answer.get_response().model_version) == ("7", "1")


async def test_every_datatype_comes_back_as_it_went(client: Any) -> None:
    answer = await client.infer("echo", [tensor(f"in_{name}", array) for name, array in EVERY.items()])
    for name, array in EVERY.items():
        found = answer.as_numpy(f"out_{name}")
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


async def test_bf16_widens_to_the_models_fp32(client: Any) -> None:
    exact = np.float32([[1.5, -2.0, 0.25], [3.0, 1e30, -0.0]]).astype(np.float32)
    exact = (exact.view(np.uint32) & 0xFFFF0000).view(np.float32)  # what BF16 can hold
    answer = await client.infer("plain", [tensor("x", exact, "BF16")])
    np.testing.assert_array_equal(answer.as_numpy("doubled"), 2 * exact)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
async def test_texts_are_tokenized_by_the_server(client: Any, shape: tuple[int, ...]) -> None:
    values = np.array(["one two three", "café"], np.object_).reshape(shape)
    answer = await client.infer("texts", [tensor("text", values)])
    np.testing.assert_array_equal(answer.as_numpy("logits"), logits(3, 1))


async def test_token_ids_and_texts_are_the_same_question(client: Any) -> None:
    ids, mask = np.int64([[2, 3, 4], [6, 1, 1]]), np.int64([[1, 1, 1], [1, 0, 0]])
    by_ids = await client.infer("texts", [tensor("input_ids", ids), tensor("attention_mask", mask)])
    by_text = await client.infer("texts", [texts("one two three", "café")])
    np.testing.assert_array_equal(by_ids.as_numpy("logits"), by_text.as_numpy("logits"))
    assert by_text.get_response().parameters["hone_cached_rows"].int64_param == 2


async def test_a_classification_is_the_largest_with_their_labels(client: Any) -> None:
    wanted = [tritonclient.grpc.InferRequestedOutput("logits", class_count=2)]
    answer = await client.infer("texts", [texts("one two three", "one")], outputs=wanted)
    assert answer.as_numpy("logits").tolist() == [
        [b"6.000000:1:" + LABELS[1].encode(), b"3.000000:0:" + LABELS[0].encode()],
        [b"2.000000:1:" + LABELS[1].encode(), b"1.000000:0:" + LABELS[0].encode()],
    ]
    plain = await client.infer("plain", [tensor("x", X)], outputs=[tritonclient.grpc.InferRequestedOutput("doubled", class_count=9)])
    assert plain.as_numpy("doubled").tolist()[0] == [b"4.000000:2", b"2.000000:1", b"0.000000:0"]


async def test_only_the_outputs_asked_for_are_answered_in_that_order(client: Any) -> None:
    names = [tritonclient.grpc.InferRequestedOutput(name) for name in ("total", "doubled")]
    both = await client.infer("plain", [tensor("x", X)], outputs=names)
    one = await client.infer("plain", [tensor("x", X)], outputs=names[:1])
    assert [output.name for output in both.get_response().outputs] == ["total", "doubled"]
    assert [output.name for output in one.get_response().outputs] == ["total"]
    assert one.as_numpy("doubled") is None
    np.testing.assert_array_equal(one.as_numpy("total"), X.sum(1))
    np.testing.assert_array_equal(both.as_numpy("doubled"), 2 * X)


async def test_three_requests_at_once_get_a_row_each(client: Any) -> None:
    rows = [np.float32([[index, index, 1000 + index]]) for index in range(3)]
    answers = await asyncio.gather(*(client.infer("plain", [tensor("x", row)], request_id=str(index)) for index, row in enumerate(rows)))
    for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        assert answer.get_response().id == str(index)
        np.testing.assert_array_equal(answer.as_numpy("doubled"), 2 * row)


async def test_priority_timeout_and_unknown_parameters_are_taken(client: Any) -> None:
    answer = await client.infer(
        "plain",
        [tensor("x", X)],
        priority=1,
        timeout=50_000_000,
        parameters={"mine": "x", "hone_sticky_key": "user-1", "hone_bypass_cache": True},
    )
    told = answer.get_response().parameters
    assert told["hone_cached_rows"].int64_param == 0
    assert told["hone_batch_rows"].int64_param >= 2
    assert told["hone_variant"].string_param == "stable"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ({"model_name": "nobody", "inputs": [tensor("x", X)]}, "NOT_FOUND", "nobody"),
        ({"model_name": "plain", "inputs": [tensor("x", X)], "model_version": "9"}, "NOT_FOUND", "plain"),
        ({"model_name": "plain", "inputs": [tensor("x", X)], "model_version": "2"}, "FAILED_PRECONDITION", "plain@2"),
        ({"model_name": "plain", "inputs": [tensor("y", X)]}, "INVALID_ARGUMENT", "'x' is missing"),
        ({"model_name": "plain", "inputs": [tensor("x", X)], "priority": 11}, "INVALID_ARGUMENT", "parameters[priority]"),
        ({"model_name": "plain", "inputs": [tensor("x", X)], "sequence_id": 5, "sequence_start": True}, "UNIMPLEMENTED", "sequence"),
        ({"model_name": "plain", "inputs": [texts("one")]}, "INVALID_ARGUMENT", "inputs[text].name"),
        ({"model_name": "texts", "inputs": [texts("one", "")]}, "INVALID_ARGUMENT", "inputs[text][1]"),
        ({"model_name": "texts", "inputs": [texts("one " * 50)]}, "INVALID_ARGUMENT", "parameters[hone_truncate]"),
        ({"model_name": "plain", "inputs": [tensor("x", X)], "outputs": [NO_OUTPUT]}, "INVALID_ARGUMENT", "outputs[0].name"),
    ],
)  # fmt: skip
async def test_a_refusal_has_its_status_and_names_the_field(client: Any, arguments: Any, status: str, text: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await client.infer(**arguments)
    assert caught.value.status() == f"StatusCode.{status}"
    assert text in caught.value.message()


async def test_long_texts_are_cut_where_that_is_asked_for(client: Any) -> None:
    answer = await client.infer("texts", [texts("one " * 50)], parameters={"hone_truncate": True})
    np.testing.assert_array_equal(answer.as_numpy("logits"), logits(12))


async def test_shared_memory_is_refused_with_a_clear_text(client: Any) -> None:
    shared = tritonclient.grpc.InferInput("x", [2, 3], "FP32")
    shared.set_shared_memory("region", 24)
    into = tritonclient.grpc.InferRequestedOutput("doubled")
    into.set_shared_memory("region", 24)
    for call in (
        client.infer("plain", [shared]),
        client.infer("plain", [tensor("x", X)], outputs=[into]),
        client.get_system_shared_memory_status(),
        client.register_system_shared_memory("a", "/a", 1),
        client.unregister_system_shared_memory("a"),
        client.get_cuda_shared_memory_status(),
        client.register_cuda_shared_memory("a", b"eA==", 0, 1),
        client.unregister_cuda_shared_memory("a"),
        client.get_trace_settings(),
        client.update_trace_settings(settings={"trace_rate": "1"}),
        client.get_log_settings(),
        client.update_log_settings(settings={"log_info": True}),
    ):
        with pytest.raises(InferenceServerException) as caught:
            await call
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        assert "not offered" in caught.value.message()


async def test_models_are_loaded_and_unloaded(client: Any) -> None:
    await client.load_model("plain")  # what stable leads to: it serves already
    await client.load_model("plain@2")
    answer = await client.infer("plain", [tensor("x", X)], model_version="2")
    assert answer.get_response().model_version == "2"
    metadata = await client.get_model_metadata("plain")
    assert list(metadata.versions) == ["1", "2"]
    await client.unload_model("plain@2")
    for name, status in (("plain@1", "FAILED_PRECONDITION"), ("plain", "FAILED_PRECONDITION"), ("nobody@1", "NOT_FOUND")):
        with pytest.raises(InferenceServerException) as caught:
            await client.unload_model(name)
        assert caught.value.status() == f"StatusCode.{status}"
    for arguments in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"x"}}):
        with pytest.raises(InferenceServerException) as caught:
            await client.load_model("plain", **arguments)
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


# Streams


@contextmanager
def streaming(client: Any, **options: Any) -> Iterator["queue.Queue[tuple[Any, Any]]"]:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), **options)
    try:
        yield answers
    finally:
        client.stop_stream()


async def test_a_sync_stream_answers_in_order_and_outlives_errors(ask: Any) -> None:
    def work(client: Any) -> list[Any]:
        with streaming(client) as answers:
            for index in range(20):
                rows = np.full((1, 3 if index % 5 else 4), index, np.float32)
                client.async_stream_infer("plain", [tensor("x", rows)], request_id=str(index))
            return [answers.get(timeout=WAIT_S) for _ in range(20)]

    for index, (result, error) in enumerate(await ask(work)):
        if index % 5:
            assert (error, result.get_response().id) == (None, str(index))
            np.testing.assert_array_equal(result.as_numpy("total"), [3 * index])
        else:
            assert "inputs[x].shape" in error.message()


async def test_with_the_header_the_stream_ends_with_the_real_status(ask: Any) -> None:
    def work(client: Any) -> tuple[Any, Any]:
        with streaming(client, headers={"triton_grpc_error": "true"}) as answers:
            client.async_stream_infer("nobody", [tensor("x", X)])
            return answers.get(timeout=WAIT_S)

    result, error = await ask(work)
    assert result is None
    assert error.status() == "StatusCode.NOT_FOUND"


async def test_an_aio_stream_tells_the_final_response(client: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for index in range(3):
            yield {
                "model_name": "texts",
                "inputs": [texts("one")],
                "request_id": str(index),
                "enable_empty_final_response": True,
            }

    found = [pair async for pair in client.stream_infer(requests())]
    assert [result.get_response().id for result, _ in found] == ["0", "1", "2"]
    assert all(error is None for _, error in found)
    assert all(result.get_response().parameters["triton_final_response"].bool_param for result, _ in found)
