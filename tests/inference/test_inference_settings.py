"""What the settings make of an operator's wishes."""

import os

import pytest
from pydantic import ValidationError

from services.inference.parallelism import Parallelism
from services.inference.settings import Batching, InferenceSettings


def test_a_queue_that_could_never_take_the_largest_request_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_rows 8 is more than queue_rows 7"):
        InferenceSettings(max_rows=8, queue_rows=7)
    assert InferenceSettings(max_rows=7, queue_rows=7).policy.queue_rows == 7


@pytest.mark.parametrize(
    ("batching", "rows", "length_aware", "buckets"),
    [
        (Batching.LENGTH_AWARE, 32, True, ()),
        (Batching.FIRST_COME, 32, False, ()),
        (Batching.FIXED_BUCKETS, 32, False, (8, 64)),
        (Batching.OFF, 1, False, ()),
    ],
)
def test_batching_becomes_a_policy(batching: Batching, rows: int, length_aware: bool, buckets: tuple[int, ...]) -> None:
    policy = InferenceSettings(batching=batching, batch_rows=32, buckets=(8, 64)).policy
    assert (policy.max_rows, policy.length_aware, policy.buckets) == (rows, length_aware, buckets)


@pytest.mark.parametrize("bounds", [(16, 8), (8, 8), (0, 8)])
def test_buckets_that_do_not_ascend_are_refused(bounds: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="buckets"):
        InferenceSettings(buckets=bounds)


@pytest.mark.parametrize(("instances", "threads"), [(1, 1), (3, 2), (0, 0)])
def test_parallelism_is_what_was_asked_or_fills_the_cores(instances: int, threads: int) -> None:
    found = InferenceSettings(instances=instances, threads=threads).parallelism
    if instances:
        assert found == Parallelism(instances, threads)
    assert min(found.instances, found.threads) >= 1


def test_pinning_more_threads_than_there_are_cores_is_refused() -> None:
    cores = len(os.sched_getaffinity(0))
    assert InferenceSettings(pin=True, instances=1, threads=cores).pin
    with pytest.raises(ValidationError, match="pin: 2 x"):
        InferenceSettings(pin=True, instances=2, threads=cores)
