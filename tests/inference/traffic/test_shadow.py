"""Copies of calls: compared off the callers' path, dropped while the service is busy, and nobody's failure."""

import asyncio
from collections.abc import Mapping

import numpy as np
import pytest

from services.backends import Array
from services.inference.traffic.agreement import LARGEST, compare
from services.inference.traffic.live import LiveSplit
from services.inference.traffic.shadow import Shadows
from services.repository.manifest import Task
from services.repository.store import Repository
from services.repository.traffic import Shadow
from tests.inference.traffic.conftest import BROKEN_ABOVE, Service, Start, plan


def shadowed(version: int, share: float = 1) -> object:
    return plan(("stable", 1, 1), shadow=Shadow(version=version, share=share))


def live(service: Service) -> LiveSplit:
    return service.models.splits.get("m", "stable")


async def test_copies_are_compared_and_no_caller_sees_them(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", shadowed(2))
    async with start() as service:
        for number in range(10):
            served = (await service.call(number)).served
            assert (served.version, served.variant) == (1, "stable")
            await service.shadows.settle()
        shadow = live(service).total().shadow
        assert (shadow.agreement.count, shadow.agreement.mean, shadow.rows) == (10, 1, 10)
        assert (shadow.dropped, shadow.failed, shadow.max_abs_difference) == (0, 0, 0)


async def test_a_share_of_the_calls_is_copied(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", shadowed(2, 0.3))
    async with start() as service:
        for number in range(300):
            await service.call(number % 7)
            await service.shadows.settle()
        assert 50 <= live(service).total().shadow.agreement.count <= 130


async def test_a_shadow_that_fails_is_counted_and_harms_nobody(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", shadowed(4))
    async with start() as service:
        for _ in range(5):
            assert (await service.call(BROKEN_ABOVE)).outputs["y"][0, 0] == 2 * BROKEN_ABOVE
            await service.shadows.settle()
        total = live(service).total()
        assert (total.shadow.failed, total.shadow.agreement.count) == (5, 0)
        assert (total.arm("stable").calls, total.arm("stable").errors) == (5, 0)


async def test_no_more_than_the_bound_are_under_way_and_the_rest_is_dropped(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", shadowed(2))
    async with start() as service:
        shadows, held, begun = Shadows(service.models, 2), asyncio.Event(), 0
        outputs = {"y": np.zeros((1, 3), np.float32)}

        async def run(reference: str, deadline: float) -> Mapping[str, Array]:
            nonlocal begun
            begun += 1
            await held.wait()
            return outputs

        for _ in range(5):
            shadows.offer(service.models.splits.route("m", ""), outputs, run)
        await asyncio.sleep(0)
        assert (begun, live(service).total().shadow.dropped) == (2, 3)
        held.set()
        await shadows.settle()
        assert live(service).total().shadow.agreement.count == 2
        shadows.offer(service.models.splits.route("m", ""), outputs, run)
        await shadows.settle()
        assert live(service).total().shadow.agreement.count == 3


async def test_while_callers_wait_nothing_is_copied(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", shadowed(2))
    async with start() as service:
        served, _ = service.models.find("m")
        calls = [asyncio.create_task(service.call(number)) for number in range(8)]
        for _ in range(1000):
            if served.engine is not None and served.engine.queued_rows:
                break
            await asyncio.sleep(0)

        async def run(reference: str, deadline: float) -> Mapping[str, Array]:
            raise AssertionError("copied")

        service.shadows.offer(service.models.splits.route("m", ""), {}, run)
        assert live(service).total().shadow.dropped == 1
        await asyncio.gather(*calls)
        await service.shadows.settle()


async def test_copies_under_way_are_given_up_at_the_end(versions: Repository, start: Start) -> None:
    versions.set_traffic("m", "stable", shadowed(2))
    async with start() as service:

        async def run(reference: str, deadline: float) -> Mapping[str, Array]:
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

        service.shadows.offer(service.models.splits.route("m", ""), {}, run)
        await asyncio.sleep(0)


def test_vectors_agree_by_their_cosine() -> None:
    control = {"embedding": np.float32([[1, 0], [1, 0], [1, 0], [0, 0]])}
    shadow = {"embedding": np.float32([[2, 0], [1, 1], [-1, 0], [1, 0]])}
    found = compare(Task.EMBEDDING, control, shadow)
    np.testing.assert_allclose(found.rows, [1, 0.5**0.5, 0, 0], atol=1e-6)
    assert (found.flipped_rows, len(found.total_variation), found.max_abs_difference) == (0, 0, 2)


def test_labels_agree_where_the_most_probable_is_the_same() -> None:
    control = {"logits": np.float32([[2, 1], [2, 1], [0, 5]])}
    shadow = {"logits": np.float32([[3, 2], [1, 2], [0, 4]])}
    found = compare(Task.CLASSIFICATION, control, shadow)
    assert found.rows.tolist() == [1, 0, 1]
    assert found.flipped_rows == 1
    probability = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(found.total_variation[:2], [0, 2 * probability - 1], atol=1e-6)


def test_labels_of_tokens_agree_by_share_and_padding_does_not_count() -> None:
    control = {"logits": np.float32([[[2, 1], [1, 2], [0, 0], [0, 0]], [[2, 1], [1, 2], [1, 2], [1, 2]]])}
    shadow = {"logits": np.float32([[[2, 1], [2, 1], [0, 0], [0, 0]], [[2, 1], [1, 2], [1, 2], [1, 2]]])}
    found = compare(Task.TOKEN_CLASSIFICATION, control, shadow)
    assert found.rows.tolist() == [0.5, 1]
    assert found.flipped_rows == 1


def test_tensors_agree_where_they_are_close() -> None:
    control = {"y": np.float32([[100, 1], [100, 1], [0, 0]]), "z": np.int64([1, 2, 3])}
    shadow = {"y": np.float32([[100.9, 1], [102, 1], [0, 0]]), "z": np.int64([1, 2, 4])}
    found = compare(Task.TENSOR, control, shadow)
    assert found.rows.tolist() == [1, 0, 0]
    assert found.max_abs_difference == pytest.approx(2)


@pytest.mark.parametrize("task", [Task.EMBEDDING, Task.CLASSIFICATION, Task.TENSOR])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_no_numbers_disagree(task: Task, value: float) -> None:
    found = compare(task, {"y": np.float32([[1, 2]])}, {"y": np.float32([[value, 2]])})
    assert found.rows.tolist() == [0]
    assert found.max_abs_difference == LARGEST
    assert np.isfinite(found.total_variation).all()


def test_another_shape_is_no_answer_to_compare() -> None:
    with pytest.raises(ValueError, match=r"y: the shadow answers \(1, 3\), the control \(1, 2\)"):
        compare(Task.TENSOR, {"y": np.zeros((1, 2))}, {"y": np.zeros((1, 3))})
    with pytest.raises(ValueError, match="y: the shadow answers nothing"):
        compare(Task.TENSOR, {"y": np.zeros((1, 2))}, {})
