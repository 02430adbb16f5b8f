"""What makes two rows the same question, and that a damaged answer is no answer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.inference.answer_key import answer_key, decode, encode
from services.inference.layout import Values

SIX = np.arange(6, dtype=np.int32)
ROW: Values = {"a": SIX.reshape(2, 3), "b": np.float32([1.5])}
KEY = answer_key("digest", ROW, ("y", "z"))

shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
array = arrays.arrays(st.sampled_from(["f4", "f2", "f8", "i8", "u1", "?"]), shapes)
values = st.dictionaries(st.text(max_size=8), array, min_size=1, max_size=3)


@pytest.mark.parametrize(
    "key",
    [
        answer_key("digesu", ROW, ("y", "z")),
        answer_key("digest", ROW, ("y",)),
        answer_key("digest", ROW, ("yz",)),
        answer_key("digest", ROW, ("yz", "")),
        answer_key("digest", ROW, ("z", "y")),
        answer_key("digesty", ROW, ("z",)),
        answer_key("digest", {"a": ROW["a"]}, ("y", "z")),
        answer_key("digest", {"a": ROW["a"], "c": ROW["b"]}, ("y", "z")),
        answer_key("digest", {"a": ROW["b"], "b": ROW["a"]}, ("y", "z")),
        answer_key("digest", {**ROW, "a": SIX.reshape(3, 2)}, ("y", "z")),
        answer_key("digest", {**ROW, "a": SIX}, ("y", "z")),
        answer_key("digest", {**ROW, "a": SIX.reshape(2, 3).view(np.uint32)}, ("y", "z")),
        answer_key("digest", {**ROW, "a": SIX.reshape(2, 3).view(np.float32)}, ("y", "z")),
        answer_key("digest", {**ROW, "b": np.float32([-1.5])}, ("y", "z")),
    ],
)
def test_another_question_has_another_key(key: bytes) -> None:
    assert key != KEY


def test_zero_and_minus_zero_are_other_bytes() -> None:
    assert answer_key("d", {"a": np.float32([0.0])}, ()) != answer_key("d", {"a": np.float32([-0.0])}, ())


@pytest.mark.parametrize(
    "same",
    [
        {"b": ROW["b"], "a": ROW["a"]},
        {**ROW, "a": np.asfortranarray(ROW["a"])},
        {**ROW, "a": np.arange(12, dtype=np.int32)[::2].reshape(2, 3) // 2},
        {**ROW, "a": np.frombuffer(SIX.tobytes(), np.int32).reshape(2, 3)},
    ],
)
def test_order_of_the_inputs_and_place_in_memory_do_not_matter(same: Values) -> None:
    assert answer_key("digest", same, ("y", "z")) == KEY


@given(row=values, digest=st.text(max_size=9), outputs=st.lists(st.text(max_size=9), max_size=3))
def test_a_key_is_32_bytes_and_the_same_each_time(row: Values, digest: str, outputs: list[str]) -> None:
    key = answer_key(digest, row, outputs)
    assert len(key) == 32
    assert key == answer_key(digest, {name: array.copy() for name, array in reversed(row.items())}, tuple(outputs))


def same_bytes(one: Values, other: Values) -> bool:
    return list(one) == list(other) and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in zip(one.values(), other.values(), strict=True)
    )


@given(outputs=values)
def test_an_answer_survives_the_way_through_bytes(outputs: Values) -> None:
    found = decode(encode(outputs))
    assert found is not None
    assert same_bytes(found, outputs)


@given(outputs=values, where=st.integers(0), flip=st.integers(1, 255))
def test_a_changed_byte_anywhere_is_no_answer(outputs: Values, where: int, flip: int) -> None:
    data = bytearray(encode(outputs))
    data[where % len(data)] ^= flip
    assert decode(bytes(data)) is None


@given(outputs=values, data=st.data())
def test_a_cut_or_longer_answer_is_no_answer(outputs: Values, data: st.DataObject) -> None:
    whole = encode(outputs)
    assert decode(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None
    assert decode(whole + data.draw(st.binary(min_size=1, max_size=9))) is None


@given(st.binary(max_size=64))
def test_strangers_bytes_are_no_answer(data: bytes) -> None:
    assert decode(data) is None
