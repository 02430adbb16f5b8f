"""What a traffic asks for, and rows that are new whenever they are to be."""

from collections import Counter
from itertools import islice
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.optimization.advisor.serving.material import Arrays, Texts, TokenIds, material_of, reordered
from services.optimization.advisor.serving.traffic import Request, Row, Traffic, Uses, requests
from services.optimization.examples import Examples
from services.optimization.failures import NotEnoughData
from tests.models import minilm, minilm_signature

SOURCES = 20


def played(traffic: Traffic, count: int, seed: int = 0, uses: Uses | None = None) -> list[Request]:
    return list(islice(requests(traffic, SOURCES, uses or Uses(), seed), count))


@pytest.mark.parametrize(
    ("told", "field"),
    [
        ({"texts": ("a",), "token_lengths": (3,)}, "token_lengths"),
        ({"texts": ("a", " ")}, r"texts\[1\]"),
        ({"token_lengths": (0,)}, "token_lengths"),
        ({"gaps_s": (0.0, 0.0)}, "gaps_s"),
        ({"gaps_s": (-1.0,)}, "gaps_s"),
        ({"request_rows": ()}, "request_rows"),
        ({"callers": 0}, "callers"),
        ({"repeat_share": 1.0}, "repeat_share"),
        ({"gamma_shape": 0}, "gamma_shape"),
        ({"rate": float("inf")}, "rate"),
    ],
)
def test_traffic_that_cannot_be_is_refused_by_its_field(told: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Traffic(**told)


def test_equal_seeds_play_alike_and_others_do_not() -> None:
    traffic = Traffic(rate=10, repeat_share=0.5)
    assert played(traffic, 100) == played(traffic, 100)
    assert played(traffic, 100) != played(traffic, 100, seed=1)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 100))
def test_without_repeats_no_row_comes_twice_however_many_play(request_rows: list[int], seed: int) -> None:
    uses, traffic = Uses(), Traffic(request_rows=tuple(request_rows))
    rows = [row for _ in range(2) for request in played(traffic, 50, seed, uses) for row in request.rows]
    assert len(set(rows)) == len(rows)
    assert {len(request.rows) for request in played(traffic, 50, seed)} <= set(request_rows)


def test_so_large_a_share_repeats_an_earlier_request() -> None:
    found = played(Traffic(repeat_share=0.7, request_rows=(2,)), 4000)
    counts = Counter(request.rows for request in found)
    assert 1 - len(counts) / len(found) == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize(("shape", "spread"), [(1.0, 1.0), (0.25, 2.0), (100.0, 0.1)])
def test_gaps_have_the_stated_rate_and_burstiness(shape: float, spread: float) -> None:
    gaps = [request.gap_s for request in played(Traffic(rate=50, gamma_shape=shape), 8000)]
    assert fmean(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(spread, rel=0.15)


def test_recorded_gaps_are_played_in_order_and_scaled_to_a_rate() -> None:
    recorded = (0.1, 0.0, 0.5)
    assert [request.gap_s for request in played(Traffic(gaps_s=recorded), 5)] == [0.1, 0.0, 0.5, 0.1, 0.0]
    faster = [request.gap_s for request in played(Traffic(gaps_s=recorded, rate=10), 3)]
    assert faster == pytest.approx([0.05, 0.0, 0.25])


def test_a_closed_loop_asks_the_same_at_once() -> None:
    traffic = Traffic(rate=10, repeat_share=0.5, callers=4)
    assert traffic.is_open_loop
    closed = traffic.closed_loop(8)
    assert (closed.is_open_loop, closed.callers, traffic.closed_loop().callers) == (False, 8, 4)
    assert all(request.gap_s == 0 for request in played(closed, 10))


@given(st.lists(st.integers(0, 4), max_size=6), st.integers(0, 2000), st.integers(0, 2000))
def test_orders_are_all_different_until_none_is_left(items: list[int], one: int, other: int) -> None:
    assert reordered(items, 0) == (items, 0)
    assert sorted(reordered(items, one)[0]) == sorted(items)
    assert (reordered(items, one) == reordered(items, other)) == (one == other)


def test_variants_of_a_text_are_new_and_about_as_long() -> None:
    texts = Texts(["the quick brown fox", "word"], [6, 3])
    found = texts.texts_of([Row(source, variant) for source in (0, 1) for variant in range(60)])
    assert len(set(found)) == 120
    assert (found[0], found[60]) == ("the quick brown fox", "word")
    assert {len(text.split()) for text in found[:24]} == {4}
    assert {len(text.split()) for text in found} <= {1, 2, 4, 5}


def test_variants_of_token_ids_keep_their_ends_and_their_number() -> None:
    ids = TokenIds([np.array([101, 7, 8, 9, 102])], 103, minilm_signature())
    batch = ids.tensors_of([Row(0, variant) for variant in range(12)])["input_ids"]
    assert batch.shape == (12, 5)
    assert len({tuple(row) for row in batch.tolist()}) == 12
    assert {(row[0], row[-1]) for row in batch.tolist()} == {(101, 102)}
    assert batch.max() < 103


def test_variants_of_numbers_differ_in_their_last_digits() -> None:
    source = np.array([[0.0, 1.0, -3.0]], np.float32)
    arrays = Arrays({"x": source, "kind": np.array([[1]])})
    found = arrays.tensors_of([Row(0, variant) for variant in range(50)])
    assert len({row.tobytes() for row in found["x"]}) == 50
    np.testing.assert_allclose(found["x"], np.repeat(source, 50, axis=0), atol=1e-4)
    assert (found["kind"] == 1).all()
    assert source.tolist() == [[0.0, 1.0, -3.0]]


def test_whole_numbers_have_no_variants() -> None:
    assert Arrays({"x": np.array([[1.0]])}).can_vary
    assert not Arrays({"x": np.array([[1]])}).can_vary


def test_recorded_texts_come_before_the_examples() -> None:
    examples = Examples(texts=("an example",))
    found = material_of(Traffic(texts=("recorded one", "recorded two")), minilm(), minilm_signature(), examples, 0)
    assert isinstance(found, Texts)
    assert (list(found.texts), list(found.lengths)) == (["recorded one", "recorded two"], [4, 4])
    assert len(material_of(Traffic(), minilm(), minilm_signature(), examples, 0)) == 1


def test_recorded_lengths_become_tokens_within_what_the_model_takes() -> None:
    found = material_of(Traffic(token_lengths=(5, 9, 4000)), minilm(), minilm_signature(), Examples(), 0)
    assert list(found.lengths) == [5, 9, 256]


def test_nothing_to_ask_is_told() -> None:
    with pytest.raises(NotEnoughData):
        material_of(Traffic(), minilm(), minilm_signature(), Examples(), 0)
