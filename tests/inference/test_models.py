"""More models than fit: which versions are in memory, who waits for whom, and what an unloaded version leaves behind."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import pytest
import torch
from hone.inference.v1 import inference_pb2 as pb

from services.chassis.errors import PUSHBACK_KEY
from services.chassis.faults import DeadlineMissed, Unavailable, WrongState
from services.inference.answers import Answers, MemoryAnswers
from services.inference.calls import Options, Result
from services.inference.core import Core
from services.inference.models import Models
from services.inference.residency import OVERHEAD_BYTES, TooLarge
from services.inference.served import State
from services.inference.settings import InferenceSettings
from services.repository.manifest import Task
from services.repository.store import Repository
from tests.inference.conftest import PLAIN, Open, Serving, Sources, seal
from tests.inference.fakes import WAIT_S, FakeClock
from tests.inference.test_served_models import flipped_byte, looked, states
from tests.models import minilm_signature

UNLOADED, READY = State.UNLOADED, State.READY
X = {"x": np.float32([[1, 2, 3]])}


class Growing:
    """A process that grows by what one small version is expected to hold at each load, whatever the machine does."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self) -> int:
        self.bytes += OVERHEAD_BYTES
        return self.bytes


def room_for(versions: int) -> int:
    return versions * OVERHEAD_BYTES + OVERHEAD_BYTES // 2


class Watched(Repository):
    """Loads wait for the gate, and are counted."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.loads: list[str] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def verify(self, name: str, version: int) -> None:
        with self._lock:
            self.loads.append(f"{name}@{version}")
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.release()
        assert self.gate.wait(WAIT_S)
        super().verify(name, version)
        with self._lock:
            self.at_once -= 1


@pytest.fixture
def watched(repository: Repository, sources: Sources) -> Watched:
    """Models a, b and c, each with a stable version."""
    for name in "abc":
        seal(repository, sources.plain, name, PLAIN, "stable")
    return Watched(repository.root)


@pytest.fixture
def fitting(following: Serving) -> Callable[..., Any]:
    """`async with fitting(repository, versions=2) as models`."""

    def start(repository: Repository, versions: int, **settings: Any) -> Any:
        return following(repository, memory_bytes=room_for(versions), held=Growing(), **settings)

    return start


async def begun(watched: Watched) -> None:
    """Returns when one more load is under way."""
    assert await asyncio.to_thread(watched.begun.acquire, timeout=WAIT_S)


async def total(models: Models, reference: str, answers: Answers | None = None, deadline: float = float("inf")) -> tuple[float, int]:
    """What the model answers, and the version that did."""
    core = Core(models, answers or Answers(None, None), 8)
    result = await core.run_tensors(reference, X, ("total",), Options(deadline=deadline))
    return float(result.outputs["total"][0]), result.served.version


async def drained(models: Models) -> None:
    """Returns when nothing is on its way out."""
    async with asyncio.timeout(WAIT_S):
        while models.residents.bytes > sum(served.resident_bytes for served in models.all()):  # noqa: ASYNC110
            await asyncio.sleep(0)


def here(models: Models) -> str:
    return "".join(served.manifest.name for served in models.all() if served.state is READY)


# Who is in memory


async def test_what_does_not_fit_comes_with_its_first_call_in_place_of_the_least_recently_used(
    watched: Watched, fitting: Callable[..., Any]
) -> None:
    async with fitting(watched, versions=2) as models:
        await models.begin()
        assert here(models) == "ab"
        await total(models, "a")
        assert await total(models, "c") == (6.0, 1)
        assert here(models) == "ac"
        assert await total(models, "b") == (6.0, 1)
        assert here(models) == "bc"
        assert models.residents.bytes <= models.residents.limit_bytes
        assert models.find("c")[0].resident_bytes > 0


async def test_without_a_limit_everything_stays(watched: Watched, following: Serving) -> None:
    async with following(watched, memory_bytes=0, held=Growing()) as models:
        await models.begin()
        assert here(models) == "abc"


async def test_a_version_that_a_call_holds_stays(watched: Watched, fitting: Callable[..., Any]) -> None:
    async with fitting(watched, versions=2) as models:
        await models.begin()
        with models.find("a")[0].lend():
            await total(models, "b")
            await total(models, "c")
            assert here(models) == "ac"


async def test_a_call_waits_until_another_gives_room(watched: Watched, fitting: Callable[..., Any]) -> None:
    async with fitting(watched, versions=1) as models:
        await models.begin()
        with models.find("a")[0].lend():
            waiting = asyncio.create_task(total(models, "b"))
            late = total(models, "c", deadline=time.monotonic() + 0.01)
            with pytest.raises(DeadlineMissed, match="c@1 was not loaded"):
                await late
            assert not waiting.done()
        assert await waiting == (6.0, 1)


async def test_a_load_that_finds_no_room_in_time_says_so(watched: Watched, fitting: Callable[..., Any]) -> None:
    async with fitting(watched, versions=1, load_wait_s=0.01) as models:
        await models.begin()
        with models.find("a")[0].lend():
            with pytest.raises(Unavailable, match="no room for b@1") as refused:
                await total(models, "b")
            assert refused.value.retry_after_s is not None
            with pytest.raises(Unavailable, match="no room for b@1"):
                await models.load("b@1")
        assert await total(models, "b") == (6.0, 1)


async def test_what_load_model_keeps_makes_room_for_none(watched: Watched, fitting: Callable[..., Any]) -> None:
    async with fitting(watched, versions=2) as models:
        await models.begin()
        await models.load("a@1")
        for name in "bcb":
            await total(models, name)
            assert here(models) == f"a{name}"
        await models.load("b@1")
        with pytest.raises(TooLarge, match="LoadModel keeps"):
            await total(models, "c")
        with pytest.raises(TooLarge, match=r"c@1 needs about"):
            await models.load("c@1")
        assert here(models) == "ab"


async def test_a_version_larger_than_the_limit_is_refused_with_the_reason(stocked: Repository, serve: Open) -> None:
    async with serve(stocked, memory_bytes=30 << 20) as door:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await door.stub.Embed(pb.EmbedRequest(model="torch", texts=["a"]))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "torch@1 needs about" in (refused.value.details() or "")
        assert PUSHBACK_KEY not in dict(refused.value.trailing_metadata())
        listed = {model.name: model for model in (await door.stub.ListModels(pb.ListModelsRequest())).models}
        assert listed["torch"].state == pb.LOAD_STATE_UNLOADED
        assert listed["plain"].state == pb.LOAD_STATE_READY
        assert listed["plain"].resident_bytes > 0
        counted = await door.stub.GetStatistics(pb.GetStatisticsRequest())
        assert 0 < counted.models_bytes <= counted.models_limit_bytes == 30 << 20


# Many who want it


async def test_one_load_however_many_ask_and_whoever_leaves(watched: Watched, fitting: Callable[..., Any]) -> None:
    async with fitting(watched, versions=2) as models:
        await models.begin()
        watched.gate.clear()
        callers = [asyncio.create_task(total(models, "c")) for _ in range(10)]
        while watched.loads[-1] != "c@1":
            await begun(watched)
        for leaver in callers[:5]:
            leaver.cancel()
        callers.append(asyncio.create_task(total(models, "c")))
        await asyncio.sleep(0)
        watched.gate.set()
        assert await asyncio.gather(*callers[5:]) == [(6.0, 1)] * 6
        assert watched.loads.count("c@1") == 1


async def test_more_callers_than_may_wait_are_told_to_come_back(watched: Watched, fitting: Callable[..., Any]) -> None:
    async with fitting(watched, versions=2, load_waiters=2) as models:
        await models.begin()
        watched.gate.clear()
        callers = [asyncio.create_task(total(models, "c")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="2 calls wait") as refused:
            await total(models, "c")
        assert refused.value.retry_after_s is not None
        watched.gate.set()
        await asyncio.gather(*callers)
        assert await total(models, "c") == (6.0, 1)


async def test_loads_at_once_are_bounded(repository: Repository, sources: Sources, following: Serving) -> None:
    for name in "abcdef":
        seal(repository, sources.plain, name, PLAIN, "stable")
    watched = Watched(repository.root)
    watched.gate.clear()
    async with following(watched, parallel_loads=2, held=Growing()) as models:
        assert await models.look()
        for _ in range(2):
            await begun(watched)
        watched.gate.set()
        await models.settle()
        assert here(models) == "abcdef"
        assert watched.most_at_once == 2


async def test_callers_of_more_than_fits_are_all_answered(watched: Watched, fitting: Callable[..., Any]) -> None:
    async with fitting(watched, versions=1) as models:
        await models.begin()
        names = "abcacbbacabc"
        assert await asyncio.gather(*(total(models, name) for name in names)) == [(6.0, 1)] * len(names)
        assert models.residents.bytes <= models.residents.limit_bytes


async def test_closing_does_not_wait_for_room(watched: Watched, fitting: Callable[..., Any]) -> None:
    with ExitStack() as held:
        async with fitting(watched, versions=1) as models, asyncio.timeout(WAIT_S / 2):
            await models.begin()
            held.enter_context(models.find("a")[0].lend())
            caller = asyncio.create_task(total(models, "b"))
            await asyncio.sleep(0)
            closing = asyncio.create_task(models.close())
            with pytest.raises(asyncio.CancelledError):
                await caller
            held.close()
            await closing


# By number


async def test_a_version_that_no_channel_points_at_comes_on_demand_where_that_is_set(
    watched: Watched, sources: Sources, fitting: Callable[..., Any]
) -> None:
    seal(watched, sources.plain, "a", PLAIN)
    async with fitting(watched, versions=2) as models:
        await models.begin()
        with pytest.raises(WrongState, match="LoadModel"):
            await total(models, "a@2")
    async with fitting(watched, versions=2, load_on_demand=True) as models:
        await models.begin()
        assert await total(models, "a@2") == (6.0, 2)
        await looked(models)
        assert states(models)["a@2"] is READY
        await total(models, "b")
        await total(models, "c")
        await drained(models)
        assert "a@2" not in states(models)
        models.residents.pinned.clear()
        assert await total(models, "a@2") == (6.0, 2)
        models.unload("a@2")


def test_loading_on_demand_without_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="memory_bytes"):
        InferenceSettings(memory_bytes=0, load_on_demand=True)


# Promotions


async def test_a_new_version_that_does_not_fit_beside_the_old_takes_its_place_and_loses_no_call(
    repository: Repository, sources: Sources, fitting: Callable[..., Any]
) -> None:
    seal(repository, sources.plain, "a", PLAIN, "stable")
    async with fitting(repository, versions=1) as models:
        await models.begin()
        seen: list[int] = []
        enough = asyncio.Event()

        async def call_on() -> None:
            while not seen or seen[-1] != 2:
                seen.append((await total(models, "a"))[1])
                enough.set()

        callers = [asyncio.create_task(call_on()) for _ in range(8)]
        await enough.wait()
        seal(repository, sources.plain, "a", PLAIN, "stable")
        await looked(models)
        await asyncio.gather(*callers)
        await drained(models)
        assert set(seen) == {1, 2}
        assert states(models) == {"a@2": READY}


async def test_a_new_version_takes_the_room_of_one_that_is_less_used_first(
    watched: Watched, sources: Sources, fitting: Callable[..., Any]
) -> None:
    async with fitting(watched, versions=2) as models:
        await models.begin()
        await total(models, "a")
        with models.find("a")[0].lend():
            seal(watched, sources.plain, "a", PLAIN, "stable")
            await looked(models)
            assert models.find("a")[0].manifest.version == 2
            assert states(models)["b@1"] is UNLOADED


async def test_a_damaged_new_version_that_had_taken_the_place_of_the_old_gives_it_back(
    repository: Repository, sources: Sources, fitting: Callable[..., Any]
) -> None:
    seal(repository, sources.plain, "a", PLAIN, "stable")
    async with fitting(repository, versions=1) as models:
        await models.begin()
        seal(repository, sources.plain, "a", PLAIN)
        with flipped_byte(repository.folder("a", 2) / "model.onnx"):
            repository.set_channel("a", "stable", 2)
            await looked(models)
            assert states(models) == {"a@1": UNLOADED, "a@2": State.FAILED}
            assert await total(models, "a") == (6.0, 1)


def sessions() -> int:
    """Models of ONNX that are in memory, whoever knows them."""
    gc.collect()
    return sum(issubclass(type(found), ort.InferenceSession) for found in gc.get_objects())


async def test_a_promotion_while_the_old_version_is_on_its_way_back_leaves_neither_behind(
    watched: Watched, sources: Sources, fitting: Callable[..., Any]
) -> None:
    before = sessions()
    async with fitting(watched, versions=1) as models:
        await models.begin()
        await total(models, "b")
        watched.gate.clear()
        caller = asyncio.create_task(total(models, "a"))
        while watched.loads[-1] != "a@1" or len(watched.loads) < 3:
            await begun(watched)
        seal(watched, sources.plain, "a", PLAIN, "stable")
        assert await models.look()
        watched.gate.set()
        assert (await caller)[0] == 6.0
        await models.settle()
        await drained(models)
        assert await total(models, "a") == (6.0, 2)
        assert states(models) == {"a@2": READY, "b@1": UNLOADED, "c@1": UNLOADED}
        assert sessions() == before + 1


async def test_a_failed_load_is_tried_again_later_and_not_at_each_look(
    repository: Repository, sources: Sources, following: Serving
) -> None:
    seal(repository, sources.plain, "a", PLAIN, "stable")
    watched, clock = Watched(repository.root), FakeClock()
    async with following(watched, clock=clock, held=Growing()) as models:
        with flipped_byte(repository.folder("a", 1) / "model.onnx"):
            for _ in range(5):
                await looked(models)
            assert (len(watched.loads), states(models)) == (1, {"a@1": State.FAILED})
            clock.now_s += 7
            for _ in range(5):
                await looked(models)
                clock.now_s += 1
            assert len(watched.loads) == 2
        clock.now_s += 60
        await looked(models)
        assert await total(models, "a") == (6.0, 1)


# What is left behind


def weights() -> list["weakref.ref[object]"]:
    """Whatever holds a model's weights now."""
    kinds = (ort.InferenceSession, torch.nn.Module, torch.Tensor)
    return [weakref.ref(found) for found in gc.get_objects() if issubclass(type(found), kinds)]


async def test_an_unloaded_version_is_freed_at_once_whoever_still_knows_it(
    repository: Repository, sources: Sources, following: Serving
) -> None:
    """Without the collector, which the service tells to leave old objects alone."""
    seal(repository, sources.plain, "plain", PLAIN, "stable")
    seal(repository, sources.one, "torch", minilm_signature(), "stable")
    gc.collect()
    before = {ref() for ref in weights()}
    async with following(repository, held=Growing()) as models:
        await models.begin()
        await total(models, "plain")
        await Core(models, Answers(None, None), 8).run_texts("torch", Task.EMBEDDING, ["a text"], Options())
        known = models.all()
        gc.collect()
        loaded = [ref for ref in weights() if ref() not in before]
        assert len(loaded) > len(known)
        gc.disable()
        try:
            await models.close()
            assert [type(ref()).__name__ for ref in loaded if ref() is not None] == []
        finally:
            gc.enable()


def asked(models: Models, answers: Answers) -> Callable[[str], Any]:
    async def ask(reference: str) -> tuple[int, int]:
        """The version that answered, and how many rows it remembered."""
        served = (await Core(models, answers, 8).run_tensors(reference, X, ("total",), Options())).served
        return served.version, served.cached_rows

    return ask


async def test_each_version_has_its_own_answers_across_promotion_and_roll_back(
    repository: Repository, sources: Sources, following: Serving
) -> None:
    seal(repository, sources.one, "m", minilm_signature(), "stable")
    answers = Answers(MemoryAnswers(1 << 20), None)
    async with following(repository, held=Growing()) as models:
        await models.begin()
        core = Core(models, answers, 8)

        async def ask(bypass: bool = False) -> Result:
            return await core.run_texts("m", Task.EMBEDDING, ["a text"], Options(bypass_cache=bypass))

        seen: dict[int, list[np.ndarray]] = {1: [], 2: []}
        for version in (1, 2, 1):
            if version == 2:
                await models.load("m@1")  # so that its answers are not dropped with it
                seal(repository, sources.two, "m", minilm_signature(), "stable")
            elif seen[2]:
                repository.roll_back("m", "stable")
            await looked(models)
            results = [await ask(), await ask(), await ask(bypass=True)]
            assert [result.served.version for result in results] == [version] * 3
            assert results[1].served.cached_rows == 1
            seen[version] += [result.outputs["embedding"] for result in results]
        assert np.abs(seen[1][0] - seen[2][0]).max() > 0.01
        for found in seen.values():
            for vector in found:
                np.testing.assert_allclose(vector, found[0], atol=1e-6)


async def test_the_answers_of_a_version_that_is_gone_for_good_go_with_it(
    repository: Repository, sources: Sources, following: Serving
) -> None:
    for name in "ab":
        seal(repository, sources.plain, name, PLAIN, "stable")
    memory = MemoryAnswers(1 << 20)
    answers = Answers(memory, None)
    async with following(repository, held=Growing(), gone=lambda served: answers.drop(served.namespace)) as models:
        await models.begin()
        await total(models, "a", answers)
        one = memory.bytes
        await total(models, "b", answers)
        repository.folder("a", 1).rename(repository.root / "gone")
        await looked(models)
        await drained(models)
        assert memory.bytes == one


async def test_the_answers_of_a_version_that_made_room_stay(watched: Watched, fitting: Callable[..., Any]) -> None:
    answers = Answers(MemoryAnswers(1 << 20), None)
    async with fitting(watched, versions=1, gone=lambda served: answers.drop(served.namespace)) as models:
        await models.begin()
        ask = asked(models, answers)
        assert [await ask(name) for name in "aba"] == [(1, 0), (1, 1), (1, 1)]


async def test_a_failed_call_is_not_remembered(repository: Repository, sources: Sources, following: Serving) -> None:
    seal(repository, sources.plain, "a", PLAIN, "stable")
    answers = Answers(MemoryAnswers(1 << 20), None)
    async with following(repository, held=Growing()) as models:
        await models.begin()
        core = Core(models, answers, 8)
        with pytest.raises(DeadlineMissed):
            await core.run_tensors("a", X, ("total",), Options(deadline=0.0))
        assert (await core.run_tensors("a", X, ("total",), Options())).served.cached_rows == 0
