"""Versions of the tasks beyond texts to vectors and labels, and of the formats that are programs, through the real server."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from hone.inference.v1 import inference_pb2 as pb

from benchmarks import corpus
from services import backends
from services.backends.text import pad
from services.repository.manifest import Manifest, Signature
from services.repository.store import Origin, Repository
from tests.applied import apply
from tests.inference.conftest import Door, opened, seal
from tests.models import (
    causal_lm,
    causal_lm_signature,
    digits_resnet,
    digits_resnet_signature,
    token_classifier,
    token_classifier_signature,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

PIXELS = corpus.digits("held_out").pixel_values[:6]
# Rows of different lengths, as their sender padded them: two more tokens than the longest has.
LENGTHS, WIDTH = (2, 9, 5), 11


def padded() -> dict[str, np.ndarray]:
    rows = [np.arange(5, 5 + length, dtype=np.int64) for length in LENGTHS]
    return {name: np.pad(array, ((0, 0), (0, WIDTH - max(LENGTHS)))) for name, array in pad(rows, causal_lm_signature()).items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Signature]]:
    root = tmp_path_factory.mktemp("tasks")
    digits = digits_resnet(root / "digits")
    onnx, exported = apply("export_onnx", digits, digits_resnet_signature(), root / "onnx")
    script, traced = apply("torchscript", digits, digits_resnet_signature(), root / "script")
    return {
        "digits": (digits, digits_resnet_signature()),
        "digits-onnx": (onnx, exported.signature),
        "digits-script": (script, traced.signature),
        "tags": (token_classifier(root / "tags"), token_classifier_signature()),
        "words": (causal_lm(root / "words"), causal_lm_signature()),
    }


@pytest.fixture(scope="module")
def repository(folders: dict[str, tuple[Path, Signature]], tmp_path_factory: pytest.TempPathFactory) -> Repository:
    repository = Repository(tmp_path_factory.mktemp("repository"))
    for name, (folder, signature) in folders.items():
        seal(repository, folder, name, signature, "stable", Origin(job="7"))
    return repository


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(repository: Repository) -> AsyncIterator[Door]:
    async with opened(repository) as opened_door:
        yield opened_door


def named(arrays: dict[str, np.ndarray]) -> list[pb.NamedTensor]:
    datatypes = {"<i8": "INT64", "<f4": "FP32"}
    return [
        pb.NamedTensor(name=name, tensor=pb.Tensor(datatype=datatypes[array.dtype.str], shape=array.shape, data=array.tobytes()))
        for name, array in arrays.items()
    ]


async def predict(door: Door, model: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    response = await door.stub.Predict(pb.PredictRequest(model=model, inputs=named(arrays)))
    (output,) = response.outputs
    return np.frombuffer(output.tensor.data, np.float32).reshape(tuple(output.tensor.shape))


def alone(folder: Path, signature: Signature, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """By the backend itself, one row at a time and without padding."""
    backend = backends.load(folder, signature, threads=1)
    return backend.run(arrays, ["logits"])["logits"]


@pytest.mark.parametrize("model", ["digits", "digits-onnx", "digits-script"])
async def test_images(door: Door, folders: dict[str, tuple[Path, Signature]], model: str) -> None:
    found = await predict(door, model, {"pixel_values": PIXELS})
    np.testing.assert_allclose(found, alone(*folders["digits"], {"pixel_values": PIXELS}), atol=1e-4)


@pytest.mark.parametrize("model", ["tags", "words"])
async def test_rows_of_other_lengths_get_their_own_tokens_answers(
    door: Door, folders: dict[str, tuple[Path, Signature]], model: str
) -> None:
    arrays = padded()
    found = await predict(door, model, arrays)
    again = await predict(door, model, arrays)  # remembered
    assert found.shape[:2] == (len(LENGTHS), WIDTH)
    np.testing.assert_array_equal(found, again)
    for index, length in enumerate(LENGTHS):
        row = {name: array[index : index + 1, :length] for name, array in arrays.items()}
        np.testing.assert_allclose(found[index, :length], alone(*folders[model], row)[0], atol=1e-4)
        assert not found[index, length:].any()


async def test_tokens_are_counted(door: Door) -> None:
    response = await door.stub.Predict(pb.PredictRequest(model="tags", inputs=named(padded()), options={"bypass_cache": True}))
    assert response.served.tokens == sum(LENGTHS)


@pytest.mark.parametrize("model", ["digits", "tags", "words"])
async def test_a_call_for_another_task_is_told_the_right_one(door: Door, model: str) -> None:
    for call in (
        door.stub.Embed(pb.EmbedRequest(model=model, texts=["a"])),
        door.stub.Classify(pb.ClassifyRequest(model=model, texts=["a"])),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="Predict answers it") as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("model", "arrays", "fault"),
    [
        ("digits", {"pixel_values": PIXELS[:, :, :7]}, r"inputs\[pixel_values\].tensor.shape"),
        ("digits", {"pixel_values": PIXELS.astype(np.int64)}, r"inputs\[pixel_values\].tensor.datatype"),
        ("digits", {"images": PIXELS}, "'pixel_values' is missing"),
        ("tags", {"pixel_values": PIXELS}, "'input_ids' is missing"),
        ("words", {"input_ids": np.full((1, 3), 10**6)}, "token ids must be 0 to"),
    ],
)
async def test_inputs_that_do_not_fit(door: Door, model: str, arrays: dict[str, Any], fault: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=fault) as caught:
        await predict(door, model, arrays)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def reason(door: Door, sealed: Manifest) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.stub.LoadModel(pb.LoadModelRequest(model=sealed.reference))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    return str(caught.value.details())


async def test_a_program_from_elsewhere_is_not_loaded(
    door: Door, repository: Repository, folders: dict[str, tuple[Path, Signature]]
) -> None:
    folder, signature = folders["digits-script"]
    assert "no job made" in await reason(door, seal(repository, folder, "foreign", signature, origin=Origin(upload_id="somebody's")))


async def test_a_program_that_was_touched_is_not_loaded(
    door: Door, repository: Repository, folders: dict[str, tuple[Path, Signature]]
) -> None:
    folder, signature = folders["digits-script"]
    sealed = seal(repository, folder, "touched", signature, origin=Origin(job="7"))
    with (repository.folder("touched", sealed.version) / "model.ts").open("r+b") as file:
        file.write(b"X")
    assert "Damaged" in await reason(door, sealed)
