"""What a request's parameters mean, and which are refused."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.faults import InvalidField
from services.inference.oip.faults import NotOffered
from services.inference.oip.parameters import NONE, Parameters, read_parameters


def test_nothing_given_is_the_default() -> None:
    assert read_parameters({}) == NONE == Parameters(0, math.inf, "", False, False)


@pytest.mark.parametrize(("level", "ours"), [(0, 0), (1, 9), (2, 8), (9, 1), (10, 0)])
def test_level_one_is_the_highest_and_zero_the_default(level: int, ours: int) -> None:
    assert read_parameters({"priority": level}).priority == ours


def test_a_timeout_is_in_microseconds_and_zero_is_none() -> None:
    assert read_parameters({"timeout": 1_500}).timeout_s == 0.0015
    assert read_parameters({"timeout": 0}).timeout_s == math.inf


def test_our_own_are_read_and_unknown_ones_ignored() -> None:
    given_ = {"hone_sticky_key": "u", "hone_truncate": True, "hone_bypass_cache": True, "anything": 3.5, "empty": None, "headers": "x"}
    assert read_parameters(given_) == Parameters(sticky_key="u", truncate=True, bypass_cache=True)
    assert read_parameters({"triton_enable_empty_final_response": True, "sequence_id": 0, "sequence_end": False}) == NONE


@pytest.mark.parametrize(
    "bad",
    [
        {"priority": 11},
        {"priority": -1},
        {"priority": True},
        {"priority": "1"},
        {"priority": None},
        {"priority": 1.0},
        {"timeout": -5},
        {"timeout": "5"},
        {"hone_sticky_key": 5},
        {"hone_truncate": "yes"},
        {"hone_bypass_cache": 1},
        {"triton_something": True},
    ],
)
def test_a_bad_value_names_its_parameter(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(InvalidField) as caught:
        read_parameters(bad)
    assert caught.value.field == f"parameters[{name}]"


@pytest.mark.parametrize("bad", [{"sequence_id": 1}, {"sequence_id": "a"}, {"sequence_start": True}, {"sequence_end": True}])
def test_sequences_are_not_offered(bad: dict[str, Any]) -> None:
    with pytest.raises(NotOffered, match="sequence"):
        read_parameters(bad)


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text("a1é", max_size=5))
NAMES = st.sampled_from(
    ["priority", "timeout", "sequence_id", "hone_sticky_key", "hone_truncate", "triton_x", "triton_enable_empty_final_response", "x"]
)


@given(st.dictionaries(NAMES, VALUES))
def test_anything_is_read_or_refused(given_: dict[str, Any]) -> None:
    try:
        found = read_parameters(given_)
    except (InvalidField, NotOffered):
        return
    assert 0 <= found.priority <= 9
    assert found.timeout_s > 0
