"""Divisions of cores into instances and threads, and what a version's recipe advises."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.parallelism import Parallelism, advised, candidates


@pytest.mark.parametrize(
    ("cores", "most", "expected"),
    [(1, 64, [(1, 1)]), (2, 2, [(1, 2), (2, 1)]), (16, 16, [(1, 16), (2, 8), (16, 1)]), (16, 4, [(1, 16), (2, 8), (4, 4)])],
)
def test_candidates(cores: int, most: int, expected: list[tuple[int, int]]) -> None:
    assert [(found.instances, found.threads) for found in candidates(cores, most)] == expected


@given(st.integers(1, 256), st.integers(1, 256))
def test_no_candidate_wants_more_cores_than_there_are_and_each_has_its_own(cores: int, most: int) -> None:
    found = candidates(cores, most)
    assert len(set(found)) == len(found) > 0
    for each in found:
        assert each.instances <= most
        own = each.cores(tuple(range(cores)))
        assert [len(part) for part in own] == [each.threads] * each.instances
        assert len({core for part in own for core in part}) == each.instances * each.threads


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"serving": {"instances": 2, "threads": 2}}, Parallelism(2, 2)),
        ({}, None),
        ({"serving": "fast"}, None),
        ({"serving": {"instances": 2}}, None),
        ({"serving": {"instances": "2", "threads": 2}}, None),
        ({"serving": {"instances": 0, "threads": 2}}, None),
        ({"serving": {"instances": 4, "threads": 2}}, None),  # advice for a larger machine
    ],
)
def test_advice_is_taken_where_it_is_whole_and_fits(recipe: dict[str, Any], expected: Parallelism | None) -> None:
    assert advised(recipe, cores=4) == expected
