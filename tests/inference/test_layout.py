"""Merging rows and splitting answers: each row gets its own back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.inference.layout import TensorLayout, TextLayout, Values, layout_of, stack
from services.repository.manifest import Signature, Task, TensorSpec
from tests.models import minilm_signature, token_classifier_signature

TEXT = minilm_signature()
ids = st.lists(st.integers(1, 30_000), min_size=1, max_size=50).map(lambda row: np.array(row, np.int64))


def with_inputs(*names: str, pad_token_id: int = 0) -> Signature:
    specs = tuple(TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in names)
    return TEXT.model_copy(update={"inputs": specs, "pad_token_id": pad_token_id})


@given(rows=st.lists(ids, min_size=1, max_size=12), pad_token_id=st.sampled_from([0, 1, 7]))
def test_text_rows_come_back_from_a_batch_as_they_went_in(rows: list[np.ndarray], pad_token_id: int) -> None:
    layout = TextLayout(with_inputs("input_ids", "attention_mask", pad_token_id=pad_token_id))
    values = [{"input_ids": row} for row in rows]
    merged = layout.merge(values)
    assert merged["input_ids"].shape == (len(rows), max(map(len, rows)))
    for row, back in zip(rows, layout.split(merged, values), strict=True):
        mask = back["attention_mask"] == 1
        np.testing.assert_array_equal(back["input_ids"][mask], row)
        assert (back["input_ids"][~mask] == pad_token_id).all()
        assert not mask[len(row) :].any()


def test_a_text_batch_has_the_inputs_that_the_model_names() -> None:
    row = {"input_ids": np.array([3, 4], np.int64)}
    assert set(TextLayout(with_inputs("input_ids", "attention_mask")).merge([row])) == {"input_ids", "attention_mask"}
    merged = TextLayout(with_inputs("input_ids", "attention_mask", "token_type_ids")).merge([row])
    assert not merged["token_type_ids"].any()


@given(data=st.data(), shape=arrays.array_shapes(min_dims=0, max_dims=3, max_side=4), dtype=st.sampled_from(["f4", "i8", "?", "f2"]))
def test_tensor_rows_come_back_from_a_batch_as_they_went_in(data: st.DataObject, shape: tuple[int, ...], dtype: str) -> None:
    row = st.fixed_dictionaries({"a": arrays.arrays(dtype, shape), "b": arrays.arrays("i4", (2,))})
    rows: list[Values] = data.draw(st.lists(row, min_size=1, max_size=6))
    layout = TensorLayout()
    assert len({layout.shape_key(row) for row in rows}) == 1
    for want, back in zip(rows, layout.split(layout.merge(rows), rows), strict=True):
        for name in ("a", "b"):
            np.testing.assert_array_equal(back[name], want[name])
            assert back[name].dtype == want[name].dtype


def test_tensor_rows_of_other_shapes_are_kept_apart() -> None:
    layout = TensorLayout()
    keys = {layout.shape_key({"a": np.zeros(shape)}) for shape in ((2, 3), (3, 2), (6,), (2, 3))}
    assert len(keys) == 3


def test_text_rows_share_batches_whatever_their_length() -> None:
    layout = TextLayout(TEXT)
    short, long = ({"input_ids": np.ones(length, np.int64)} for length in (3, 300))
    assert layout.shape_key(short) == layout.shape_key(long)
    assert (layout.length(short), layout.length(long)) == (3, 300)


@pytest.mark.parametrize("answer", [np.zeros((3, 2)), np.zeros((1, 2)), np.float32(1)])
def test_answers_of_another_length_are_refused(answer: np.ndarray) -> None:
    with pytest.raises(ValueError, match="'y' has shape"):
        TensorLayout().split({"y": answer}, [{}, {}])


@given(rows=st.lists(ids, min_size=1, max_size=12))
def test_answers_per_token_come_back_as_long_as_their_rows(rows: list[np.ndarray]) -> None:
    layout = layout_of(token_classifier_signature())
    values = [{"input_ids": row} for row in rows]
    merged = layout.merge(values)
    per_token = np.repeat(merged["input_ids"][..., None], 3, axis=2)
    for row, back in zip(rows, layout.split({"logits": per_token}, values), strict=True):
        np.testing.assert_array_equal(back["logits"], np.repeat(row[:, None], 3, axis=1))


@given(rows=st.lists(ids, min_size=1, max_size=12), spare=st.integers(0, 3))
def test_answers_per_token_are_stacked_with_zeros_behind(rows: list[np.ndarray], spare: int) -> None:
    tokens = max(map(len, rows)) + spare
    stacked = stack([row[:, None] for row in rows], tokens)
    assert stacked.shape == (len(rows), tokens, 1)
    for row, found in zip(rows, stacked[..., 0], strict=True):
        np.testing.assert_array_equal(found[: len(row)], row)
        assert not found[len(row) :].any()


def test_a_vector_per_row_is_not_cut() -> None:
    values = [{"input_ids": np.ones(length, np.int64)} for length in (1, 4)]
    found = layout_of(TEXT).split({"embedding": np.ones((2, 384))}, values)
    assert [answers["embedding"].shape for answers in found] == [(384,), (384,)]


@pytest.mark.parametrize("task", list(Task))
def test_the_task_chooses_the_layout(task: Task) -> None:
    expected = TensorLayout if task in (Task.TENSOR, Task.IMAGE_CLASSIFICATION) else TextLayout
    assert type(layout_of(TEXT.model_copy(update={"task": task}))) is expected
