"""Every RPC and every status of the contract, against the real server with real models."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from hone.inference.v1 import inference_pb2 as pb

from services.backends import RunError
from services.backends.onnxruntime import OnnxRuntimeBackend
from services.chassis.errors import PUSHBACK_KEY
from services.repository.store import Repository
from tests.inference.conftest import Door, Open, Sources, opened

TEXTS = ["Short.", "A sentence of medium length about matrices.", "Another one, " * 30, "naïve café 東京 🙂", "x"]
LONG = "word " * 600


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(stocked: Repository) -> AsyncIterator[Door]:
    """One server for all tests, since loading four models takes seconds: a test that counts uses texts of its own."""
    async with opened(stocked, max_rows=8, max_text_chars=4000) as opened_door:
        yield opened_door


@pytest.fixture(scope="module")
def reference(sources: Sources) -> Any:
    """Vectors of texts by transformers alone: mean pooling, normalized, one text at a time."""
    import torch
    import transformers

    tokenizer = transformers.BertTokenizerFast.from_pretrained(sources.two)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(sources.two).eval()

    def vectors(texts: Sequence[str], max_length: int = 256) -> np.ndarray:
        with torch.inference_mode():
            hidden = [
                model(**tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")).last_hidden_state[0].mean(0)
                for text in texts
            ]
            return torch.nn.functional.normalize(torch.stack(hidden), dim=1).numpy()

    return vectors


@pytest.fixture(scope="module")
def tokenize(sources: Sources) -> Any:
    import transformers

    tokenizer = transformers.BertTokenizerFast.from_pretrained(sources.two)
    return lambda texts: tokenizer(list(texts), padding=True, return_tensors="np")


def tensor(array: np.ndarray) -> pb.Tensor:
    names = {"<i8": "INT64", "<f4": "FP32", "<i4": "INT32"}
    return pb.Tensor(datatype=names[array.dtype.str], shape=array.shape, data=array.tobytes())


def named(**arrays: np.ndarray) -> list[pb.NamedTensor]:
    return [pb.NamedTensor(name=name, tensor=tensor(array)) for name, array in arrays.items()]


def array(found: pb.Tensor) -> np.ndarray:
    return np.frombuffer(found.data, {"FP32": np.float32}[found.datatype]).reshape(tuple(found.shape))


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def pushback_ms(error: grpc.aio.AioRpcError) -> int | None:
    found = dict(error.trailing_metadata()).get(PUSHBACK_KEY)
    return None if found is None else int(found)


# Answers


@pytest.mark.parametrize("model", ["torch", "onnx"])
async def test_embeddings_are_those_of_transformers_alone(door: Door, reference: Any, model: str) -> None:
    response = await door.stub.Embed(pb.EmbedRequest(model=model, texts=TEXTS))
    alone = [await door.stub.Embed(pb.EmbedRequest(model=model, texts=[text], options={"bypass_cache": True})) for text in TEXTS]
    found = array(response.embeddings)
    np.testing.assert_allclose(found, reference(TEXTS), atol=1e-4)
    np.testing.assert_allclose(found, np.concatenate([array(each.embeddings) for each in alone]), atol=1e-5)


async def test_an_answer_tells_where_it_came_from(door: Door, tokenize: Any) -> None:
    texts = [f"Told: {text}" for text in TEXTS]
    first = (await door.stub.Embed(pb.EmbedRequest(model="torch:stable", texts=texts))).served
    again = (await door.stub.Embed(pb.EmbedRequest(model="torch@1", texts=texts))).served
    part = (await door.stub.Embed(pb.EmbedRequest(model="torch", texts=[*texts, "A new one.", "A new one."]))).served
    bypassed = (await door.stub.Embed(pb.EmbedRequest(model="torch", texts=texts, options={"bypass_cache": True}))).served
    assert (first.model, first.version, first.variant, first.replica) == ("torch", 1, "stable", "here")
    assert first.tokens == tokenize(texts)["attention_mask"].sum()
    assert first.cached_rows == 0
    assert 1 <= first.batch_rows <= len(texts)
    assert min(first.queue_ns, first.tokenization_ns, first.compute_ns) > 0
    assert (again.variant, again.cached_rows, again.batch_rows, again.compute_ns) == ("", len(texts), 0, 0)
    assert (part.cached_rows, part.batch_rows) == (len(texts), 1)
    assert bypassed.cached_rows == 0


async def test_predict_with_ids_is_embed_and_shares_its_answers(door: Door, tokenize: Any) -> None:
    encoded = tokenize(TEXTS)
    inputs = named(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
    embedded = await door.stub.Embed(pb.EmbedRequest(model="torch", texts=TEXTS))
    predicted = await door.stub.Predict(pb.PredictRequest(model="torch", inputs=inputs))
    computed = await door.stub.Predict(pb.PredictRequest(model="torch", inputs=inputs, options={"bypass_cache": True}))
    assert [output.name for output in predicted.outputs] == ["embedding"]
    assert predicted.outputs[0].tensor == embedded.embeddings
    assert predicted.served.cached_rows == len(TEXTS)
    np.testing.assert_allclose(array(computed.outputs[0].tensor), array(embedded.embeddings), atol=1e-5)


async def test_classify_is_transformers_alone(door: Door, sources: Sources) -> None:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(sources.classifier).eval()
    tokenizer = transformers.BertTokenizerFast.from_pretrained(sources.classifier)
    with torch.inference_mode():
        want = [model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].numpy() for text in TEXTS]
    response = await door.stub.Classify(pb.ClassifyRequest(model="topics", texts=TEXTS))
    best = await door.stub.Classify(pb.ClassifyRequest(model="topics", texts=TEXTS, top_k=2))
    more = await door.stub.Classify(pb.ClassifyRequest(model="topics", texts=TEXTS, top_k=99))
    for classification, scores in zip(response.classifications, want, strict=True):
        by_label = {scored.label: scored.score for scored in classification.labels}
        np.testing.assert_allclose([by_label[model.config.id2label[index]] for index in range(len(scores))], scores, atol=1e-4)
        assert sum(by_label.values()) == pytest.approx(1, abs=1e-5)
        assert [scored.score for scored in classification.labels] == sorted(by_label.values(), reverse=True)
    assert [list(each.labels) for each in best.classifications] == [list(each.labels[:2]) for each in response.classifications]
    assert more.classifications == response.classifications


async def test_plain_tensors_are_answered_in_the_order_asked(door: Door) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    every = await door.stub.Predict(pb.PredictRequest(model="plain", inputs=named(x=x)))
    asked = await door.stub.Predict(pb.PredictRequest(model="plain", inputs=named(x=x), outputs=["total", "doubled"]))
    one = await door.stub.Predict(pb.PredictRequest(model="plain", inputs=named(x=x), outputs=["total"]))
    again = await door.stub.Predict(pb.PredictRequest(model="plain", inputs=named(x=x), outputs=["total"]))
    assert [output.name for output in every.outputs] == ["doubled", "total"]
    assert [output.name for output in asked.outputs] == ["total", "doubled"]
    np.testing.assert_array_equal(array(every.outputs[0].tensor), 2 * x)
    np.testing.assert_array_equal(array(asked.outputs[0].tensor), x.sum(1))
    assert (len(one.outputs), again.served.cached_rows, again.served.tokens) == (1, 2, 0)
    assert again.outputs == one.outputs


@pytest.mark.parametrize("model", ["torch", "onnx"])
async def test_truncation_cuts_at_the_models_tokens_where_it_is_asked_for(door: Door, reference: Any, model: str) -> None:
    error = await refused(door.stub.Embed(pb.EmbedRequest(model=model, texts=["fine", LONG])))
    cut = await door.stub.Embed(pb.EmbedRequest(model=model, texts=[LONG], options={"truncate": True}))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("texts[1]: ")
    assert "256" in error.details()
    assert cut.served.tokens == 256
    np.testing.assert_allclose(array(cut.embeddings), reference([LONG]), atol=1e-4)


# Refusals


IDS = np.array([[101, 7592, 102]], np.int64)
X = np.zeros((1, 3), np.float32)


def predict(model: str = "plain", *inputs: pb.NamedTensor, **fields: Any) -> pb.PredictRequest:
    return pb.PredictRequest(model=model, inputs=inputs, **fields)


def x_as(**fields: Any) -> pb.NamedTensor:
    return pb.NamedTensor(name="x", tensor=pb.Tensor(**{"datatype": "FP32", "shape": [1, 3], "data": bytes(12), **fields}))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.EmbedRequest(model="torch"), "texts"),
        (pb.EmbedRequest(model="torch", texts=["a"] * 9), "texts"),
        (pb.EmbedRequest(model="torch", texts=["a", ""]), "texts[1]"),
        (pb.EmbedRequest(model="torch", texts=["a", " \n\t"]), "texts[1]"),
        (pb.EmbedRequest(model="torch", texts=["a" * 4001]), "texts[0]"),
        (pb.EmbedRequest(model="torch", texts=["a"], options={"priority": 10}), "options.priority"),
        (pb.EmbedRequest(model="torch", texts=["a"], options={"priority": -1}), "options.priority"),
        (pb.EmbedRequest(model="to rch", texts=["a"]), "model"),
        (pb.EmbedRequest(texts=["a"]), "model"),
        (pb.ClassifyRequest(model="topics", texts=["a"], top_k=-1), "top_k"),
        (predict("plain"), "inputs"),
        (predict("plain", *named(x=X, y=X)), "inputs[y].name"),
        (predict("plain", *named(x=X), *named(x=X)), "inputs[1].name"),
        (predict("plain", *named(x=np.zeros((9, 3), np.float32))), "inputs"),
        (predict("plain", *named(x=X), outputs=["total", "nothing"]), "outputs[1]"),
        (predict("plain", x_as(datatype="FP31")), "inputs[x].tensor.datatype"),
        (predict("plain", x_as(datatype="INT32")), "inputs[x].tensor.datatype"),
        (predict("plain", x_as(data=bytes(11))), "inputs[x].tensor.data"),
        (predict("plain", x_as(data=b"")), "inputs[x].tensor.data"),
        (predict("plain", x_as(shape=[1, 4], data=bytes(16))), "inputs[x].tensor.shape"),
        (predict("plain", x_as(shape=[])), "inputs[x].tensor.shape"),
        (predict("plain", x_as(shape=[-1, 3])), "inputs[x].tensor.shape"),
        (predict("plain", x_as(shape=[0, 3], data=b"")), "inputs[x].tensor.shape"),
        (predict("plain", x_as(shape=[0, 2**62, 2**62], data=b"")), "inputs[x].tensor.shape"),
        (predict("plain", x_as(shape=[1] * 70, data=bytes(4))), "inputs[x].tensor.shape"),
        (predict("torch", *named(attention_mask=IDS)), "inputs"),
        (predict("torch", *named(input_ids=IDS.astype(np.int32))), "inputs[input_ids].tensor.datatype"),
        (predict("torch", *named(input_ids=IDS + 10**6)), "inputs[input_ids].tensor.data"),
        (predict("torch", *named(input_ids=IDS, attention_mask=IDS)), "inputs[attention_mask].tensor.data"),
    ],
)
async def test_bad_input_is_named(door: Door, request_: Any, field: str) -> None:
    method = type(request_).__name__.removesuffix("Request")
    error = await refused(getattr(door.stub, method)(request_))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    assert error.details().startswith(f"{field}: " if field != "model" else "model name"), error.details()


def every_call(model: str) -> list[tuple[str, Any]]:
    return [
        ("Embed", pb.EmbedRequest(model=model, texts=["a"])),
        ("Classify", pb.ClassifyRequest(model=model, texts=["a"])),
        ("Predict", predict(model, *named(x=X))),
    ]


async def test_codes_of_references(door: Door) -> None:
    wanted = {
        "nobody": grpc.StatusCode.NOT_FOUND,
        "plain:canary": grpc.StatusCode.NOT_FOUND,
        "plain@9": grpc.StatusCode.NOT_FOUND,
        "plain@2": grpc.StatusCode.FAILED_PRECONDITION,
    }
    for model, code in wanted.items():
        for method, request in every_call(model):
            error = await refused(getattr(door.stub, method)(request))
            assert (method, model, error.code()) == (method, model, code)
            assert model.partition("@")[0].partition(":")[0] in error.details()


async def test_another_task_is_the_wrong_state(door: Door) -> None:
    for call in (
        door.stub.Embed(pb.EmbedRequest(model="topics", texts=["a"])),
        door.stub.Classify(pb.ClassifyRequest(model="torch", texts=["a"])),
        door.stub.Embed(pb.EmbedRequest(model="plain", texts=["a"])),
    ):
        error = await refused(call)
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "is for" in error.details()


async def test_before_the_first_look_everything_is_unavailable_with_push_back(stocked: Repository, serve: Open) -> None:
    async with serve(stocked, begin=False) as door:
        for method, request in every_call("plain"):
            error = await refused(getattr(door.stub, method)(request))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert (pushback_ms(error) or 0) > 0


async def test_a_message_over_the_limit_is_refused_and_the_connection_goes_on(stocked: Repository, serve: Open) -> None:
    async with serve(stocked, max_message_bytes=1 << 16) as door:
        error = await refused(door.stub.Embed(pb.EmbedRequest(model="torch", texts=["a" * (1 << 17)])))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await door.stub.Embed(pb.EmbedRequest(model="torch", texts=["a"]))


async def test_a_backend_that_fails_is_internal_and_tells_nothing(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RunError("/secret/path")

    monkeypatch.setattr(OnnxRuntimeBackend, "run", fail)
    error = await refused(door.stub.Predict(predict("plain", *named(x=X), options={"bypass_cache": True})))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()


# Control


async def test_models_are_listed_with_their_state(door: Door, stocked: Repository) -> None:
    response = await door.stub.ListModels(pb.ListModelsRequest())
    assert response.replica == "here"
    versions = [model for model in response.models if model.version == 1]  # another test's plain@2 may be draining
    found = {model.name: model for model in versions}
    assert {name: model.backend for name, model in found.items()} == {
        "torch": "torch, 1 x 1 threads",
        "onnx": "onnxruntime, 1 x 1 threads",
        "topics": "torch, 1 x 1 threads",
        "plain": "onnxruntime, 1 x 1 threads",
    }
    for model in versions:
        assert (model.state, list(model.channels)) == (pb.LOAD_STATE_READY, ["stable"])
        assert model.size_bytes == stocked.manifest(model.name, 1).size_bytes


async def test_a_version_is_loaded_served_and_unloaded(door: Door) -> None:
    request = predict("plain@2", *named(x=X))
    loaded = (await door.stub.LoadModel(pb.LoadModelRequest(model="plain@2"))).model
    assert (loaded.name, loaded.version, loaded.state) == ("plain", 2, pb.LOAD_STATE_READY)
    assert (await door.stub.Predict(request)).served.version == 2
    await door.stub.UnloadModel(pb.UnloadModelRequest(model="plain@2"))
    error = await refused(door.stub.Predict(request))
    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)  # draining, or gone already


@pytest.mark.parametrize(
    ("method", "model", "code"),
    [
        ("LoadModel", "nobody", grpc.StatusCode.NOT_FOUND),
        ("LoadModel", "plain@9", grpc.StatusCode.NOT_FOUND),
        ("LoadModel", "pl ain", grpc.StatusCode.INVALID_ARGUMENT),
        ("UnloadModel", "plain@1", grpc.StatusCode.FAILED_PRECONDITION),
        ("UnloadModel", "plain", grpc.StatusCode.FAILED_PRECONDITION),
        ("UnloadModel", "plain@2", grpc.StatusCode.NOT_FOUND),
        ("UnloadModel", "@", grpc.StatusCode.INVALID_ARGUMENT),
        ("GetStatistics", "nobody", grpc.StatusCode.NOT_FOUND),
        ("GetStatistics", "plain@2", grpc.StatusCode.FAILED_PRECONDITION),
        ("GetStatistics", "@", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_codes_of_control(door: Door, method: str, model: str, code: grpc.StatusCode) -> None:
    error = await refused(getattr(door.stub, method)(getattr(pb, f"{method}Request")(model=model)))
    assert error.code() is code


async def counted(door: Door, model: str) -> pb.ModelStatistics:
    (found,) = (await door.stub.GetStatistics(pb.GetStatisticsRequest(model=model))).models
    return found


def cached_rows_metric(door: Door) -> float:
    return door.server.registry.get_sample_value("hone_cached_rows_total", {"model": "onnx", "version": "1"}) or 0.0


async def test_statistics_count_calls_rows_and_what_was_remembered(door: Door) -> None:
    texts = [f"Counted: {text}" for text in TEXTS]
    before, metric_before = await counted(door, "onnx"), cached_rows_metric(door)
    for _ in range(2):
        await door.stub.Embed(pb.EmbedRequest(model="onnx", texts=texts))
    await refused(door.stub.Embed(pb.EmbedRequest(model="onnx", texts=[""])))
    after = await counted(door, "onnx")
    assert (after.name, after.version) == ("onnx", 1)
    assert after.requests - before.requests == 2
    assert after.cached_rows - before.cached_rows == after.batch_rows - before.batch_rows == len(texts)
    assert after.rows == after.cached_rows + after.batch_rows
    assert cached_rows_metric(door) - metric_before == len(texts)
    assert (after.dropped_rows, after.refused_requests, after.queued_rows) == (0, 0, 0)
    assert after.padded_tokens >= after.real_tokens > before.real_tokens
    assert min(after.batches, after.queue_ns, after.tokenization_ns, after.compute_ns, after.loaded.seconds) > 0


async def test_statistics_of_all_models_and_of_the_process(door: Door) -> None:
    response = await door.stub.GetStatistics(pb.GetStatisticsRequest())
    assert {model.name for model in response.models} == {"torch", "onnx", "topics", "plain"}
    assert response.cpu_seconds > 0


async def test_equal_texts_of_many_callers_are_computed_once(door: Door) -> None:
    before = await counted(door, "torch")
    responses = await asyncio.gather(*(door.stub.Embed(pb.EmbedRequest(model="torch", texts=["the very same"])) for _ in range(20)))
    assert len({response.embeddings.data for response in responses}) == 1
    assert (await counted(door, "torch")).batch_rows - before.batch_rows == 1
