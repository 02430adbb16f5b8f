"""Following the repository with real models: load aside, switch, drain; and what a failed load leaves behind."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from services.chassis.faults import NotFound, Unavailable, WrongState
from services.inference.answers import Answers
from services.inference.calls import Options, Result
from services.inference.core import Core
from services.inference.models import Models
from services.inference.served import State
from services.repository.manifest import Task
from services.repository.references import BadName
from services.repository.store import Repository, UnknownModel
from tests.inference.conftest import PLAIN, Serving, Sources, seal
from tests.models import minilm_signature

TEXT = minilm_signature()


async def embed(models: Models, reference: str, text: str = "a sentence") -> Result:
    return await Core(models, Answers(None, None), 8).run_texts(reference, Task.EMBEDDING, [text], Options())


async def looked(models: Models) -> None:
    """One look at the repository, and what it began has ended."""
    assert await models.look()
    await models.settle()


def states(models: Models) -> dict[str, State]:
    return {served.manifest.reference: served.state for served in models.all()}


@contextmanager
def flipped_byte(file: Path) -> Iterator[None]:
    """A file with one bit changed in its middle, as a bad disk leaves it."""

    def flip() -> None:
        with file.open("r+b") as opened:
            opened.seek(file.stat().st_size // 2)
            byte = opened.read(1)[0]
            opened.seek(-1, 1)
            opened.write(bytes([byte ^ 1]))

    flip()
    try:
        yield
    finally:
        flip()


async def test_what_a_channel_points_at_is_served(repository: Repository, sources: Sources, following: Serving) -> None:
    seal(repository, sources.plain, "plain", PLAIN, "stable")
    seal(repository, sources.plain, "plain", PLAIN)
    async with following(repository) as models:
        await models.begin()
        assert states(models) == {"plain@1": State.READY}
        served, variant = models.find("plain")
        assert (served.manifest.version, variant) == (1, "stable")
        assert models.channels_of(served) == ["stable"]
        assert models.find("plain@1") == (served, "")


async def test_a_promotion_under_load_loses_no_call_and_answers_by_one_version_each(
    repository: Repository, sources: Sources, following: Serving
) -> None:
    seal(repository, sources.one, "m", TEXT, "stable")
    async with following(repository, instances=2) as models:
        await models.begin()
        want = {1: (await embed(models, "m@1")).outputs["embedding"]}
        seen: list[Result] = []
        promoted, enough = asyncio.Event(), asyncio.Event()

        async def call_on() -> None:
            while not (promoted.is_set() and seen[-1].served.version == 2):
                seen.append(await embed(models, "m"))
                enough.set()

        callers = [asyncio.create_task(call_on()) for _ in range(8)]
        await enough.wait()
        seal(repository, sources.two, "m", TEXT, "stable")
        await looked(models)
        promoted.set()
        await asyncio.gather(*callers)
        want[2] = (await embed(models, "m@2")).outputs["embedding"]
        assert {result.served.version for result in seen} == {1, 2}
        assert np.abs(want[1] - want[2]).max() > 0.01
        for result in seen:
            np.testing.assert_allclose(result.outputs["embedding"], want[result.served.version], atol=1e-5)


async def test_a_version_is_not_unloaded_while_a_call_holds_it(repository: Repository, sources: Sources, following: Serving) -> None:
    seal(repository, sources.plain, "plain", PLAIN, "stable")
    async with following(repository) as models:
        await models.begin()
        old, _ = models.find("plain")
        with old.lend():
            seal(repository, sources.plain, "plain", PLAIN, "stable")
            await looked(models)
            assert models.find("plain")[0].manifest.version == 2
            assert states(models) == {"plain@1": State.DRAINING, "plain@2": State.READY}
            with pytest.raises(Unavailable, match="draining"):
                models.find("plain@1")
            with pytest.raises(Unavailable, match="draining"):
                await models.load("plain@1")
        await models.close()
        assert states(models) == {}


async def test_a_damaged_version_keeps_the_old_one_and_says_why(repository: Repository, sources: Sources, following: Serving) -> None:
    seal(repository, sources.plain, "plain", PLAIN, "stable")
    async with following(repository) as models:
        await models.begin()
        new = seal(repository, sources.plain, "plain", PLAIN)
        with flipped_byte(repository.folder("plain", new.version) / "model.onnx"):
            repository.set_channel("plain", "stable", new.version)
            await looked(models)
            assert states(models) == {"plain@1": State.READY, "plain@2": State.FAILED}
            (failed,) = (served for served in models.all() if served.state is State.FAILED)
            assert "model.onnx has digest" in failed.reason
            assert models.find("plain")[0].manifest.version == 1
            with pytest.raises(Unavailable, match=r"could not be loaded: .*model\.onnx"):
                models.find("plain@2")
        assert (await models.load("plain@2")).state is State.READY  # mended
        await looked(models)
        assert models.find("plain")[0].manifest.version == 2


async def test_a_channel_whose_only_version_is_damaged_says_why(repository: Repository, sources: Sources, following: Serving) -> None:
    seal(repository, sources.plain, "plain", PLAIN, "stable")
    with flipped_byte(repository.folder("plain", 1) / "model.onnx"):
        async with following(repository) as models:
            await models.begin()
            with pytest.raises(Unavailable, match="could not be loaded") as refused:
                models.find("plain")
            assert refused.value.retry_after_s is None  # coming back alone does not mend it


async def test_a_version_without_a_readable_manifest_does_not_stop_the_others(
    repository: Repository, sources: Sources, following: Serving
) -> None:
    for name in ("a", "b", "c"):
        seal(repository, sources.plain, name, PLAIN, "stable")
    (repository.folder("b", 1) / "manifest.json").write_text("{")
    async with following(Repository(repository.root)) as models:  # one that has not read it yet
        await models.begin()
        assert states(models) == {"a@1": State.READY, "c@1": State.READY}


class FailingOnce(Repository):
    """Its disk fails while the channels of `b` are read for the first time."""

    failed = False

    def channels(self, name: str) -> dict[str, int]:
        if name == "b" and not self.failed:
            self.failed = True
            raise OSError("the disk does not answer")
        return super().channels(name)

    def channels_changed_ns(self, name: str) -> int:
        return super().channels_changed_ns(name) - 10**12  # moved long ago: a look reads it once


async def test_a_disk_that_fails_in_the_middle_of_a_look_loses_no_change(
    repository: Repository, sources: Sources, following: Serving
) -> None:
    for name in ("a", "b"):
        seal(repository, sources.plain, name, PLAIN, "stable")
    async with following(FailingOnce(repository.root), follow_s=0.01) as models:
        assert not await models.look()
        await models.begin()
        assert states(models) == {"a@1": State.READY, "b@1": State.READY}


async def test_a_deleted_model_is_unloaded(repository: Repository, sources: Sources, following: Serving) -> None:
    seal(repository, sources.plain, "plain", PLAIN, "stable")
    seal(repository, sources.plain, "other", PLAIN, "stable")
    async with following(repository) as models:
        await models.begin()
        repository.folder("plain", 1).rename(repository.root / "gone")
        await looked(models)
        with pytest.raises((NotFound, UnknownModel)):
            models.find("plain")
        assert models.find("other")
        assert State.READY not in (served.state for served in models.all() if served.manifest.name == "plain")


async def test_a_version_on_its_way_is_unavailable_with_the_time_to_come_back(
    repository: Repository, sources: Sources, following: Serving
) -> None:
    seal(repository, sources.plain, "plain", PLAIN, "stable")
    async with following(repository) as models:
        for expected in ("about to be served", "loading"):
            with pytest.raises(Unavailable, match=expected) as refused:
                models.find("plain")
            assert refused.value.retry_after_s is not None
            assert await models.look()
        await models.settle()
        assert models.find("plain")


async def test_a_channel_that_moved_to_a_loaded_version_is_about_to_switch(
    repository: Repository, sources: Sources, following: Serving
) -> None:
    seal(repository, sources.plain, "plain", PLAIN)
    async with following(repository) as models:
        await models.load("plain@1")
        repository.set_channel("plain", "canary", 1)
        with pytest.raises(Unavailable, match="about to be") as refused:
            models.find("plain:canary")
        assert refused.value.retry_after_s is not None
        await looked(models)
        assert models.find("plain:canary")


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("nobody", UnknownModel),
        ("plain:canary", UnknownModel),
        ("plain@9", UnknownModel),
        ("plain@2", WrongState),
        ("", BadName),
        ("../plain", BadName),
        ("plain@1@2", BadName),
        ("plain@0", BadName),
    ],
)
async def test_what_cannot_be_found_says_why(stocked: Repository, following: Serving, reference: str, fault: type[Exception]) -> None:
    async with following(stocked) as models:
        with pytest.raises(fault):
            models.find(reference)


async def test_a_loaded_version_stays_until_it_is_unloaded(repository: Repository, sources: Sources, following: Serving) -> None:
    for _ in range(2):
        seal(repository, sources.plain, "plain", PLAIN)
    repository.set_channel("plain", "stable", 1)
    async with following(repository) as models:
        await models.begin()
        loaded = await models.load("plain@2")
        assert await models.load("plain@2") is loaded
        await looked(models)
        assert models.find("plain@2") == (loaded, "")
        models.unload("plain@2")
        with pytest.raises(Unavailable, match="draining"):
            models.find("plain@2")
        assert models.find("plain@1")


async def test_several_who_load_a_version_share_one_load(repository: Repository, sources: Sources, following: Serving) -> None:
    seal(repository, sources.plain, "plain", PLAIN)
    async with following(repository) as models:
        first, *others = await asyncio.gather(*(models.load("plain@1") for _ in range(5)))
        assert all(other is first for other in others)


async def test_unloading_is_refused_where_it_would_not_last(repository: Repository, sources: Sources, following: Serving) -> None:
    seal(repository, sources.plain, "plain", PLAIN, "stable")
    async with following(repository) as models:
        await models.begin()
        with pytest.raises(WrongState, match="stable"):
            models.unload("plain@1")
        with pytest.raises(WrongState, match="NAME@VERSION"):
            models.unload("plain")
        with pytest.raises(NotFound):
            models.unload("plain@7")


async def test_unloading_what_still_answers_for_a_failed_version_is_refused(
    repository: Repository, sources: Sources, following: Serving
) -> None:
    seal(repository, sources.plain, "plain", PLAIN, "stable")
    async with following(repository) as models:
        await models.begin()
        seal(repository, sources.plain, "plain", PLAIN)
        with flipped_byte(repository.folder("plain", 2) / "model.onnx"):
            repository.set_channel("plain", "stable", 2)
            await looked(models)
            with pytest.raises(WrongState, match="stable"):
                models.unload("plain@1")


async def test_a_load_that_fails_says_why_and_can_be_tried_again(repository: Repository, sources: Sources, following: Serving) -> None:
    seal(repository, sources.plain, "plain", PLAIN)
    async with following(repository) as models:
        with flipped_byte(repository.folder("plain", 1) / "model.onnx"), pytest.raises(WrongState, match=r"model\.onnx has digest"):
            await models.load("plain@1")
        assert (await models.load("plain@1")).state is State.READY


async def test_a_failed_load_leaves_no_stray_exception(repository: Repository, sources: Sources, following: Serving) -> None:
    stray: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: stray.append(context["message"]))
    seal(repository, sources.plain, "plain", PLAIN, "stable")
    with flipped_byte(repository.folder("plain", 1) / "model.onnx"):
        async with following(repository) as models:
            assert await models.look()
            while any(served.state is State.LOADING for served in models.all()):  # noqa: ASYNC110  awaiting the load would retrieve it
                await asyncio.sleep(0)
            await asyncio.sleep(0)
    assert stray == []


async def test_rolling_back_serves_the_version_before(repository: Repository, sources: Sources, following: Serving) -> None:
    for _ in range(2):
        seal(repository, sources.plain, "plain", PLAIN, "stable")
    async with following(repository) as models:
        await models.begin()
        assert models.find("plain")[0].manifest.version == 2
        repository.roll_back("plain", "stable")
        await looked(models)
        assert models.find("plain")[0].manifest.version == 1
