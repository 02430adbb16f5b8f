"""Named tensors to rows: what is refused, and under which field's name."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.backends.datatypes import DATATYPES, datatype_of
from services.chassis.faults import InvalidField
from services.inference.rows import tensor_rows
from services.repository.manifest import Format, Signature, Task, TensorSpec
from tests.models import minilm_signature

TEXT = minilm_signature()  # 256 tokens
VOCABULARY = 100
PLAIN = Signature(
    task=Task.TENSOR,
    format=Format.ONNX,
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)), TensorSpec(name="n", datatype="INT32", shape=(-1,))),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),),
)


def token_rows(**inputs: object) -> list[Mapping[str, np.ndarray]]:
    return tensor_rows(TEXT, {name: np.asarray(value) for name, value in inputs.items()}, VOCABULARY)


@given(rows=st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20), min_size=1, max_size=8), extra=st.integers(0, 5))
def test_padding_is_cut_off(rows: list[list[int]], extra: int) -> None:
    width = max(map(len, rows)) + extra
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    assert [row["input_ids"].tolist() for row in token_rows(input_ids=ids, attention_mask=mask)] == rows


def test_without_a_mask_every_token_counts() -> None:
    assert [row["input_ids"].tolist() for row in token_rows(input_ids=[[5, 0], [7, 8]])] == [[5, 0], [7, 8]]


def test_zero_token_types_are_taken_and_mean_nothing() -> None:
    (row,) = token_rows(input_ids=[[5, 6]], token_type_ids=[[0, 0]])
    assert set(row) == {"input_ids"}


def test_token_types_within_padding_do_not_matter() -> None:
    (row,) = token_rows(input_ids=[[5, 6]], attention_mask=[[1, 0]], token_type_ids=[[0, 1]])
    assert row["input_ids"].tolist() == [5]


LARGE = 2**63 - 1


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"attention_mask": [[1]]}, "inputs"),
        ({"input_ids": [[1]], "pixels": [[1]]}, "inputs[pixels].name"),
        ({"input_ids": np.ones((1, 2), np.int32)}, "inputs[input_ids].tensor.datatype"),
        ({"input_ids": [[1, 2]], "attention_mask": np.ones((1, 2), np.float32)}, "inputs[attention_mask].tensor.datatype"),
        ({"input_ids": [1, 2]}, "inputs[input_ids].tensor.shape"),
        ({"input_ids": np.ones((0, 2), np.int64)}, "inputs[input_ids].tensor.shape"),
        ({"input_ids": np.ones((2, 0), np.int64)}, "inputs[input_ids].tensor.shape"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "inputs[attention_mask].tensor.shape"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 1], [1, 1]]}, "inputs[attention_mask].tensor.shape"),
        ({"input_ids": np.ones((1, 257), np.int64)}, "inputs[input_ids].tensor.shape"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "inputs[attention_mask].tensor.data"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[0, 1, 1]]}, "inputs[attention_mask].tensor.data"),
        ({"input_ids": [[1, 2]], "attention_mask": [[2, 0]]}, "inputs[attention_mask].tensor.data"),
        ({"input_ids": [[1, 2]], "attention_mask": [[-1, -1]]}, "inputs[attention_mask].tensor.data"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[LARGE, LARGE, 3]]}, "inputs[attention_mask].tensor.data"),
        ({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [0, 0]]}, "inputs[attention_mask].tensor.data"),
        ({"input_ids": [[1, VOCABULARY]]}, "inputs[input_ids].tensor.data"),
        ({"input_ids": [[1, -1]]}, "inputs[input_ids].tensor.data"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0, 1]]}, "inputs[token_type_ids].tensor.data"),
    ],
)
def test_a_text_models_bad_input_is_named(inputs: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        token_rows(**inputs)
    assert refused.value.field == field
    assert str(refused.value).startswith(f"{field}: ")


def test_an_empty_row_is_told_by_its_number() -> None:
    with pytest.raises(InvalidField, match="row 1"):
        token_rows(input_ids=[[1, 2], [3, 4]], attention_mask=[[1, 1], [0, 0]])


def plain(**changes: object) -> list[Mapping[str, np.ndarray]]:
    inputs: dict[str, object] = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([8, 9], np.int32), **changes}
    return tensor_rows(PLAIN, {name: np.asarray(value) for name, value in inputs.items() if value is not None}, 0)


def test_plain_tensors_are_cut_into_rows() -> None:
    first, second = plain()
    assert (first["x"].tolist(), int(first["n"])) == ([0, 1, 2], 8)
    assert (second["x"].tolist(), int(second["n"])) == ([3, 4, 5], 9)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"x": None}, "inputs"),
        ({"z": np.ones(2, np.float32)}, "inputs[z].name"),
        ({"x": np.ones((2, 3))}, "inputs[x].tensor.datatype"),
        ({"x": np.ones((2, 4), np.float32)}, "inputs[x].tensor.shape"),
        ({"x": np.ones((2, 3, 1), np.float32)}, "inputs[x].tensor.shape"),
        ({"x": np.ones(3, np.float32)}, "inputs[x].tensor.shape"),
        ({"n": np.ones(3, np.int32)}, "inputs"),
        ({"x": np.ones((0, 3), np.float32), "n": np.ones(0, np.int32)}, "inputs[x].tensor.shape"),
    ],
)
def test_a_tensor_models_bad_input_is_named(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        plain(**changes)
    assert refused.value.field == field


def test_rows_that_differ_are_told_with_their_counts() -> None:
    with pytest.raises(InvalidField, match="x has 2, n has 3"):
        plain(n=np.ones(3, np.int32))


@pytest.mark.parametrize(("name", "dtype"), DATATYPES.items())
def test_datatypes_and_numpys_are_one_to_one(name: str, dtype: str) -> None:
    assert datatype_of(np.zeros(1, dtype)) == name
