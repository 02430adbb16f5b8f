"""Real models in a repository, and the service in this process on a free port."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hone.inference.v1 import inference_pb2_grpc
from prometheus_client import CollectorRegistry

from services.chassis.server import Server
from services.inference.answers import Answers, MemoryAnswers
from services.inference.core import Core
from services.inference.errors import ERRORS
from services.inference.metrics import Metrics
from services.inference.models import Models
from services.inference.oip import wire as oip
from services.inference.oip.servicer import OpenInferenceServicer
from services.inference.servicer import NAME, InferenceServicer
from services.inference.settings import InferenceSettings
from services.repository.manifest import Format, Manifest, Signature, Task, TensorSpec
from services.repository.store import Origin, Repository
from tests.applied import apply
from tests.models import classifier, classifier_signature, minilm_signature, shallow_minilm

PLAIN = Signature(
    task=Task.TENSOR,
    format=Format.ONNX,
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),),
    outputs=(TensorSpec(name="doubled", datatype="FP32", shape=(-1, 3)), TensorSpec(name="total", datatype="FP32", shape=(-1,))),
)


def plain_model(folder: Path) -> Path:
    """`doubled` = 2 x and `total` = the sum of a row of x, as ONNX. Answers `folder`."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    nodes = [
        helper.make_node("Mul", ["x", "two"], ["doubled"]),
        helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=0),
    ]
    constants = [numpy_helper.from_array(np.float32(2), "two"), numpy_helper.from_array(np.int64([1]), "axis")]
    x, doubled = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 3]) for name in ("x", "doubled"))
    total = helper.make_tensor_value_info("total", TensorProto.FLOAT, ["rows"])
    graph = helper.make_graph(nodes, "plain", [x], [doubled, total], constants)
    folder.mkdir()
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    return folder


def exported(source: Path, folder: Path) -> tuple[Path, Signature]:
    """MiniLM's folder as one ONNX file in fp32."""
    target, outcome = apply("export_onnx", source, minilm_signature(), folder)
    return target, outcome.signature


@dataclass(frozen=True)
class Sources:
    """Model folders, made once: `one` and `two` are MiniLM's first layers and answer differently."""

    one: Path
    two: Path
    onnx: Path
    onnx_signature: Signature
    classifier: Path
    plain: Path


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    root = tmp_path_factory.mktemp("sources")
    one, two = (shallow_minilm(root / name, layers) for name, layers in (("one", 1), ("two", 2)))
    topics = classifier(root / "classifier", examples=80)
    return Sources(one, two, *exported(two, root / "onnx"), topics, plain_model(root / "plain"))


def seal(
    repository: Repository, folder: Path, name: str, signature: Signature, channel: str = "", origin: Origin | None = None
) -> Manifest:
    """A new version of `name` with the folder's files, and `channel` pointing at it."""
    with repository.staging() as staged:
        shutil.copytree(folder, staged, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        sealed = repository.seal(staged, name, signature, origin or Origin())
    if channel:
        repository.set_channel(name, channel, sealed.version)
    return sealed


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture(scope="session")
def stocked(tmp_path_factory: pytest.TempPathFactory, sources: Sources) -> Repository:
    """A repository with every kind of model. Read only."""
    repository = Repository(tmp_path_factory.mktemp("stocked"))
    seal(repository, sources.two, "torch", minilm_signature(), "stable")
    seal(repository, sources.onnx, "onnx", sources.onnx_signature, "stable")
    seal(repository, sources.classifier, "topics", classifier_signature(), "stable")
    seal(repository, sources.plain, "plain", PLAIN, "stable")
    seal(repository, sources.plain, "plain", PLAIN)  # a second version, which no channel points at
    return repository


Serving = Callable[..., AbstractAsyncContextManager[Models]]


@pytest.fixture
def following() -> Serving:
    """`async with following(repository) as models`: models that look at the repository when the test says so.

    Takes settings, and what else `Models` takes by name.
    """

    @asynccontextmanager
    async def start(repository: Repository, **settings: Any) -> AsyncIterator[Models]:
        parts = {name: settings.pop(name) for name in ("gone", "clock", "held") if name in settings}
        chosen = InferenceSettings(repository=repository.root, **{"instances": 1, "threads": 1, **settings})
        models = Models(repository, chosen, Metrics(CollectorRegistry()), **parts)
        try:
            yield models
        finally:
            await models.close()

    return start


@dataclass(frozen=True)
class Door:
    """The service's stub, and what stands behind it."""

    stub: "inference_pb2_grpc.InferenceServiceAsyncStub"
    models: Models
    core: Core
    server: Server
    channel: grpc.aio.Channel


Open = Callable[..., AbstractAsyncContextManager[Door]]


@asynccontextmanager
async def opened(repository: Repository, begin: bool = True, **settings: Any) -> AsyncIterator[Door]:
    chosen = InferenceSettings(repository=repository.root, **{"port": 0, "instances": 1, "threads": 1, "replica": "here", **settings})
    async with AsyncExitStack() as stack:
        server = Server(chosen, ERRORS)
        answers = Answers(MemoryAnswers(chosen.answers_bytes) if chosen.answers_bytes else None, None)
        models = Models(repository, chosen, Metrics(server.registry), gone=lambda served: answers.drop(served.namespace))
        stack.push_async_callback(models.close)
        core = Core(models, answers, chosen.max_rows)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceServicer(core, models, chosen.replica), server.grpc)
        other = OpenInferenceServicer(core, models, chosen, lambda: server.is_ready(NAME))
        oip.add_to_server(other, server.grpc)
        server.reflected = oip.reflected()
        server.before_drain.append(other.end_streams)
        await stack.enter_async_context(server.running([NAME, oip.NAME]))
        if begin:
            await models.begin()
            for name in (NAME, oip.NAME):
                await server.set_ready(name, True)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
        yield Door(inference_pb2_grpc.InferenceServiceStub(channel), models, core, server, channel)


@pytest.fixture
def serve() -> Open:
    """`async with serve(repository, max_rows=4) as door`: the real server on a free port."""
    return opened
