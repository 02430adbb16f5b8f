"""The data that models are trained and judged on: real, the same every time, and never both."""

import keyword

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import corpus

SEEDS = (0, 1)


def test_digits_are_cut_in_two() -> None:
    train, held_out = corpus.digits("train"), corpus.digits("held_out")
    assert (len(train.labels), len(held_out.labels)) == (1438, 359)
    assert train.pixel_values.shape[1:] == (1, 8, 8)
    assert (train.pixel_values.min(), train.pixel_values.max()) == (-1, 1)
    assert {*held_out.labels} == set(range(10))


@pytest.mark.parametrize(
    "draw", [corpus.prose, lambda n, part, seed: [" ".join(words) for words in corpus.source_lines(n, part, seed).words]]
)
def test_what_is_held_out_is_never_trained_on(draw) -> None:  # type: ignore[no-untyped-def]
    train = {text for seed in SEEDS for text in draw(300, "train", seed)}
    held_out = {text for seed in SEEDS for text in draw(100, "held_out", seed)}
    assert not train & held_out
    assert draw(20, "train", 3) == draw(20, "train", 3) != draw(20, "train", 4)


def test_tags_are_those_of_the_language() -> None:
    lines = corpus.source_lines(300, "train")
    for words, tags in zip(lines.words, lines.tags, strict=True):
        assert len(words) == len(tags)
        for word, tag in zip(words, tags, strict=True):
            assert (corpus.TAGS[tag] == "keyword") == keyword.iskeyword(word)
    assert len(np.unique(np.concatenate(lines.tags))) == len(corpus.TAGS)


def test_more_than_there_is() -> None:
    with pytest.raises(ValueError, match="the corpus holds"):
        corpus.source_lines(10**6, "train")


@given(st.lists(st.text(max_size=20), min_size=200, max_size=300, unique=True))
def test_about_a_fifth_is_held_out(texts: list[str]) -> None:
    assert 0.05 < np.mean([corpus.is_held_out(text) for text in texts]) < 0.4
