"""The classification extension's strings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from services.inference.oip.classification import largest


def test_the_largest_lead_with_their_index_and_label() -> None:
    rows = np.float32([[0.25, 0.5, -1.0], [3, 2, 1]])
    assert largest(rows, 2, ("a", "b", "c")) == [[b"0.500000:1:b", b"0.250000:0:a"], [b"3.000000:0:a", b"2.000000:1:b"]]


def test_labels_count_only_where_each_element_has_one() -> None:
    assert largest(np.float32([[1, 2]]), 9, ("a",)) == [[b"2.000000:1", b"1.000000:0"]]


def test_of_equal_elements_the_first_leads() -> None:
    assert largest(np.int64([[1, 5, 5, 1]]), 3, ()) == [[b"5:1", b"5:2", b"1:0"]]


@pytest.mark.parametrize(("dtype", "written"), [(np.uint8, b"200:0"), (np.bool_, b"1:0"), (np.float16, b"200.000000:0")])
def test_numbers_are_written_as_their_kind(dtype: type[np.generic], written: bytes) -> None:
    assert largest(np.array([[200]], dtype), 1, ()) == [[written]]


def test_a_row_of_many_dimensions_is_counted_through() -> None:
    assert largest(np.float32([[[1, 2], [9, 3]]]), 1, ()) == [[b"9.000000:2"]]


@given(st_np.arrays(np.int64, st_np.array_shapes(min_dims=2, max_dims=2, max_side=6)), st.integers(1, 8))
def test_the_values_descend_and_are_the_rows_own(rows: np.ndarray, k: int) -> None:
    for row, found in zip(rows, largest(rows, k, ()), strict=True):
        pairs = [tuple(map(int, element.split(b":"))) for element in found]
        assert [value for value, _ in pairs] == sorted(row.tolist(), reverse=True)[:k]
        assert all(row[index] == value for value, index in pairs)
        assert len({index for _, index in pairs}) == min(k, len(row))
