"""More models than fit, behind the real server: a mixture of requests leaves nothing behind, and harm to one model harms no other."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hone.inference.v1 import inference_pb2 as pb

from benchmarks.mixture import Mixture
from benchmarks.soak import Sample, faults_of, growth
from services.chassis.errors import PUSHBACK_KEY
from services.inference.residency import OVERHEAD_BYTES
from services.inference.served import State
from services.repository.store import Repository
from tests.inference.conftest import PLAIN, Door, opened, plain_model, seal
from tests.models import minilm_signature, shallow_minilm

REQUESTS, CALLERS, TURNS = 160, 8, 4
WAIT_S = 120.0


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shallow_minilm(tmp_path_factory.mktemp("shallow") / "one")


async def at_rest(door: Door, tasks: int) -> None:
    """Returns when no call is held, nothing waits, and nothing is on its way out."""
    async with asyncio.timeout(WAIT_S):
        while len(asyncio.all_tasks()) > tasks or any(served.lent for served in door.models.all()):  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_mixture_of_requests_and_promotions_leaves_nothing_behind(tmp_path: Path, shallow: Path) -> None:
    repository = Repository(tmp_path / "repository")
    size_bytes = 0
    for name in "abc":
        size_bytes = seal(repository, shallow, name, minilm_signature(), "stable").size_bytes
        seal(repository, shallow, name, minilm_signature())
    async with opened(repository, memory_bytes=3 * size_bytes - 1, spare_s=0, tune_s=0) as door:
        mixture = Mixture(door.stub, "abc", seed=4)
        await mixture.run(REQUESTS // TURNS, CALLERS)
        await door.models.residents.settle()
        tasks, threads = len(asyncio.all_tasks()), threading.active_count()
        for turn in range(1, TURNS):
            repository.set_channel("abc"[turn % 3], "stable", 2)
            await asyncio.gather(mixture.run(REQUESTS // TURNS, CALLERS), door.models.look())
            await door.models.residents.settle()
        await at_rest(door, tasks + 1)
        assert mixture.unexpected == []
        assert mixture.ended.total() == REQUESTS
        assert {kind for kind, code in mixture.ended if code == "OK"} >= {"short", "repeated", "rows", "tensors"}
        assert threading.active_count() <= threads + 6  # the loop's own pool, of cores and four
        for served in door.models.all():
            assert served.lent == 0
            assert served.engine is None or served.engine.queued_rows == 0
        assert sum(served.state is State.READY for served in door.models.all()) < 3
        assert door.models.residents.bytes <= door.models.residents.limit_bytes


def x(model: str) -> pb.PredictRequest:
    array = np.float32([[1, 2, 3]])
    tensor = pb.Tensor(datatype="FP32", shape=array.shape, data=array.tobytes())
    return pb.PredictRequest(model=model, inputs=[pb.NamedTensor(name="x", tensor=tensor)])


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.fixture
def two(tmp_path: Path) -> Repository:
    """Models a and b, of which one fits."""
    repository, folder = Repository(tmp_path / "repository"), plain_model(tmp_path / "plain")
    for name in "ab":
        seal(repository, folder, name, PLAIN, "stable")
    return repository


ONE = {"memory_bytes": OVERHEAD_BYTES * 3 // 2}


async def other_in_memory(door: Door) -> str:
    """The model that is not in memory."""
    return next(served.manifest.name for served in door.models.all() if served.state is not State.READY)


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (lambda folder: (folder / "model.onnx").write_bytes(b"not a graph"), grpc.StatusCode.UNAVAILABLE),
        (lambda folder: (folder / "model.onnx").unlink(), grpc.StatusCode.UNAVAILABLE),
        (shutil.rmtree, grpc.StatusCode.UNAVAILABLE),
    ],
    ids=["damaged", "a file gone", "gone"],
)
async def test_a_version_harmed_while_it_is_out_of_memory_harms_no_other(
    two: Repository, harm: Callable[[Path], object], code: grpc.StatusCode
) -> None:
    async with opened(two, **ONE) as door:
        cold = await other_in_memory(door)
        warm = "ab".replace(cold, "")
        harm(two.folder(cold, 1))
        assert (await refused(door.stub.Predict(x(cold)))).code() is code
        assert (await door.stub.Predict(x(warm))).served.version == 1
        assert await door.models.look()


class Gated(Repository):
    """Loads of b wait for the gate."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = threading.Event()

    def verify(self, name: str, version: int) -> None:
        if name == "b":
            assert self.gate.wait(WAIT_S)
        super().verify(name, version)


async def test_no_more_calls_wait_for_a_load_than_may(two: Repository) -> None:
    gated = Gated(two.root)
    gated.gate.set()
    async with opened(gated, load_waiters=1, **ONE) as door:
        await door.stub.Predict(x("a"))
        gated.gate.clear()
        waiting = asyncio.ensure_future(door.stub.Predict(x("b"), timeout=WAIT_S))
        async with asyncio.timeout(WAIT_S):
            while not door.models.residents.is_recalled(("b", 1)):  # noqa: ASYNC110
                await asyncio.sleep(0)
        crowded = await refused(door.stub.Predict(x("b")))
        assert crowded.code() is grpc.StatusCode.UNAVAILABLE
        assert int(dict(crowded.trailing_metadata())[PUSHBACK_KEY]) > 0
        gated.gate.set()
        assert (await waiting).served.version == 1
        assert (await door.stub.Predict(x("a"))).served.version == 1


def sample(requests: int, resident_bytes: int, threads: int = 20) -> Sample:
    return Sample(requests, resident_bytes, threads, 30, 500, 0)


def test_the_soak_finds_what_grows() -> None:
    flat = [sample(n, 500_000_000 + (n % 3) * 1_000_000) for n in range(1, 11)]
    leaking = [sample(n, 500_000_000 + n * 10_000_000) for n in range(1, 11)]
    assert faults_of(flat, 48e6) == []
    assert growth(leaking).low == pytest.approx(90e6)
    assert len(faults_of(leaking, 48e6)) == 1
    assert len(faults_of([*flat[:-1], sample(10, 500_000_000, threads=60)], 48e6)) == 1
