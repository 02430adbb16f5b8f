"""Which arm answers: weights obeyed, keys that stay where they are, the same arm everywhere."""

import math
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.traffic.routing import Router

KEYS = [f"user-{number}" for number in range(300)]
WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=2)


def router(weights: dict[str, float], *salt: str, seed: int = 1) -> Router:
    return Router(weights, salt or ("model", "stable", ""), Random(seed).random)


def within_bounds(count: int, share: float, of: int) -> bool:
    """Five standard deviations of a binomial: a right share misses it once in millions."""
    return abs(count - share * of) <= 5 * math.sqrt(of * share * (1 - share)) + 1


@pytest.mark.parametrize("sticky", [True, False])
@pytest.mark.parametrize("weights", [{"stable": 90.0, "new": 10.0}, {"a": 1.0, "b": 2.0, "c": 5.0}, {"a": 0.001, "b": 0.999}])
def test_weights_are_obeyed(weights: dict[str, float], sticky: bool) -> None:
    split, calls, total = router(weights), 20_000, sum(weights.values())
    found = Counter(split.choose(f"key-{number}" if sticky else "") for number in range(calls))
    for arm, weight in weights.items():
        assert within_bounds(found[arm], weight / total, calls), found


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, WEIGHTS)
def test_a_key_goes_only_to_an_arm_whose_weight_grew_beside_its_own(before: dict[str, float], after: dict[str, float]) -> None:
    old, new = router(before), router(after)
    for key in KEYS:
        left, entered = old.choose(key), new.choose(key)
        if left != entered and left in after and entered in before:
            assert after[entered] / before[entered] > after[left] / before[left]


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.data())
def test_an_arm_that_is_taken_out_moves_its_own_keys_alone_and_to_the_control(weights: dict[str, float], data: st.DataObject) -> None:
    control, *others = weights
    split, out = router(weights), data.draw(st.sampled_from(others))
    before = {key: split.choose(key) for key in KEYS}
    split.take_out(out)
    assert {key: split.choose(key) for key in KEYS} == {key: control if arm == out else arm for key, arm in before.items()}
    assert all(split.choose("") != out for _ in KEYS)
    assert split.shares()[out] == 0
    assert sum(split.shares().values()) == pytest.approx(1)


def test_the_control_cannot_be_taken_out_and_an_arm_must_exist() -> None:
    split = router({"a": 1, "b": 1})
    with pytest.raises(ValueError, match="the control"):
        split.take_out("a")
    with pytest.raises(KeyError):
        split.take_out("c")


def test_other_models_channels_and_experiments_deal_their_keys_independently() -> None:
    weights = {"a": 1.0, "b": 1.0}
    salts = [("m", "stable", ""), ("n", "stable", ""), ("m", "canary", ""), ("m", "stable", "again")]
    dealt = [[router(weights, *salt).choose(f"key-{number}") for number in range(4000)] for salt in salts]
    for one, other in pairwise(dealt):
        assert within_bounds(sum(left == right for left, right in zip(one, other, strict=True)), 0.5, 4000)


def test_another_process_chooses_alike() -> None:
    """Python's own hash() is salted anew in every process."""
    program = (
        "from services.inference.traffic.routing import Router\n"
        "split = Router({'a': 2.0, 'b': 1.0}, ('model', 'stable', ''), lambda: 0.0)\n"
        "print(''.join(split.choose(f'user-{number}') for number in range(300)))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    split = router({"a": 2, "b": 1})
    assert told == "".join(map(split.choose, KEYS))
    assert {*told} == {"a", "b"}


@pytest.mark.parametrize(("point", "arm"), [(0.0, "a"), (0.2499, "a"), (0.25, "b"), (1 - 2**-53, "b")])
def test_chance_is_cut_at_the_weights(point: float, arm: str) -> None:
    assert Router({"a": 1, "b": 3}, (), lambda: point).choose("") == arm


def test_any_text_is_a_key() -> None:
    split = router({"a": 1, "b": 1})
    for key in ("\0", "\ud800", "東京", "k" * 100_000):
        assert split.choose(key) == split.choose(key)
