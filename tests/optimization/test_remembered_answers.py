"""What models answered, kept in a cache."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from services.optimization.evaluation.answers import Answers
from services.optimization.evaluation.comparison import Comparison
from services.optimization.evaluation.remembered import answers_digest, decode, encode
from services.optimization.examples import Examples
from services.optimization.rows import ArrayRows, Rows, TextRows
from tests.models import minilm_signature
from tests.optimization.fake_cache import FakeCache, remembering
from tests.optimization.test_comparison import EXAMPLES, product

ROWS = ArrayRows(EXAMPLES.arrays)


def same(found: Answers | None, right: Answers) -> bool:
    if found is None or (found.vectors is None) != (right.vectors is None) or not found.is_finite:
        return False
    pairs = [*zip(found.predictions, right.predictions, strict=True), *zip(found.losses, right.losses, strict=True)]
    if found.vectors is not None and right.vectors is not None:
        pairs.append((found.vectors, right.vectors))
    return all(one.dtype == other.dtype and np.array_equal(one, other) for one, other in pairs)


RAGGED = st.lists(npst.arrays(np.int64, st.integers(0, 6), elements=st.integers(0, 1 << 40)), min_size=1, max_size=6)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
LOSSES = st.lists(npst.arrays(np.float64, st.integers(0, 6), elements=FINITE), min_size=1, max_size=6)
VECTORS = npst.arrays(np.float32, npst.array_shapes(min_dims=2, max_dims=2), elements=st.floats(-1e9, 1e9, width=32))


@given(
    answers=st.one_of(st.builds(Answers, vectors=VECTORS), st.builds(Answers, predictions=RAGGED, losses=st.one_of(st.just(()), LOSSES)))
)
def test_decode_undoes_encode(answers: Answers) -> None:
    assert same(decode(encode(answers)), answers)


def test_a_repeated_comparison_runs_neither_original_nor_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, candidate = product(tmp_path / "original", np.eye(4)), product(tmp_path / "candidate", 1.5 * np.eye(4))
    cache, found = FakeCache(), []
    for _ in range(2):
        with Comparison(original, EXAMPLES, threads=1, seed=0, remembered=remembering(cache)) as comparison:
            found.append(comparison.admit("candidate", candidate))
            assert comparison.measure_latency(0.01).keys() == {"", "candidate"}
        monkeypatch.setattr("services.optimization.evaluation.answers.answers", forbid)
    assert found[0] == found[1]
    assert len(cache.kept) == 4  # a slice and its head of each


def forbid(*_: object) -> Answers:
    raise AssertionError("a model was run over the examples again")


@pytest.mark.parametrize("damaged", [0, 1])
def test_damaged_answers_are_computed_again(tmp_path: Path, damaged: int) -> None:
    original, cache, found = product(tmp_path / "original", np.eye(4)), FakeCache(), []
    for _ in range(2):
        with Comparison(original, EXAMPLES, threads=1, seed=0, remembered=remembering(cache)) as comparison:
            found.append(comparison.admit("equal", original))
        name = list(cache.kept)[damaged]
        cache.kept[name] = cache.kept[name][::-1]
    assert found[0] == found[1]


def test_a_known_original_is_not_run_over_the_examples_again(tmp_path: Path) -> None:
    original, cache = product(tmp_path / "original", np.eye(4)), FakeCache()
    opposite = Answers(vectors=-EXAMPLES.arrays["x"])
    remembering(cache).keep(answers_digest(original, EXAMPLES, ROWS, 1), encode(opposite))
    with Comparison(original, EXAMPLES, threads=1, seed=0, remembered=remembering(cache)) as comparison:
        candidate = product(tmp_path / "candidate", 1.5 * np.eye(4))
        assert comparison.admit("candidate", candidate).fidelity.interval.estimate < 0


def test_answers_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    original, infinite, cache = (
        product(tmp_path / "original", np.eye(4)),
        product(tmp_path / "infinite", np.full((4, 4), np.inf)),
        FakeCache(),
    )
    with Comparison(original, EXAMPLES, threads=1, seed=0, remembered=remembering(cache)) as comparison:
        kept = len(cache.kept)
        assert not comparison.admit("infinite", infinite).is_finite
    assert len(cache.kept) == kept


def test_other_answers_have_another_digest(tmp_path: Path) -> None:
    model, other = product(tmp_path / "model", np.eye(4)), product(tmp_path / "other", 2 * np.eye(4))
    others = Examples(arrays={"x": EXAMPLES.arrays["x"] + 1})
    texts = [TextRows([np.array(row) for row in rows], minilm_signature()) for rows in ([[1, 2], [3]], [[1], [2, 3]], [[1, 2], [4]])]
    rows: list[Rows] = [ROWS, *texts]
    digests = {
        answers_digest(other, EXAMPLES, ROWS, 1),
        answers_digest(model, others, ROWS, 1),
        answers_digest(model, EXAMPLES, ROWS, 2),
        *(answers_digest(model, EXAMPLES, found, 1) for found in rows),
    }
    assert len(digests) == 7
    assert answers_digest(model, EXAMPLES, ROWS, 1) in digests
