"""What the settings make of an operator's wishes."""

import pytest
from pydantic import ValidationError

from services.inference.settings import Batching, InferenceSettings


def test_a_queue_that_could_never_take_the_largest_request_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_rows 8 is more than queue_rows 7"):
        InferenceSettings(max_rows=8, queue_rows=7)
    assert InferenceSettings(max_rows=7, queue_rows=7).policy.queue_rows == 7


@pytest.mark.parametrize(
    ("batching", "rows", "length_aware"),
    [(Batching.LENGTH_AWARE, 32, True), (Batching.FIRST_COME, 32, False), (Batching.OFF, 1, False)],
)
def test_batching_becomes_a_policy(batching: Batching, rows: int, length_aware: bool) -> None:
    policy = InferenceSettings(batching=batching, batch_rows=32).policy
    assert (policy.max_rows, policy.length_aware) == (rows, length_aware)


@pytest.mark.parametrize(("instances", "threads"), [(1, 1), (3, 2), (0, 0)])
def test_parallelism_is_what_was_asked_or_fills_the_cores(instances: int, threads: int) -> None:
    found = InferenceSettings(instances=instances, threads=threads).parallelism
    if instances:
        assert found == (instances, threads)
    assert min(found) >= 1
