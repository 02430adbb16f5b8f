"""Tokenized datasets, found instead of made again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.optimization import rows as rows_module
from services.optimization.examples import Examples
from services.optimization.failures import BadModel
from services.optimization.remembered import Remembered
from services.optimization.rows import WORTH_REMEMBERING, TextRows, prepare
from services.optimization.techniques import Model
from services.repository.manifest import Task
from tests.optimization.fake_cache import FakeCache, remembering
from tests.optimization.training.tiny_models import WORDS, signature, write_tokenizer

COUNT = WORTH_REMEMBERING
TEXTS = Examples(texts=tuple(" ".join(WORDS[: 1 + index % 17]) for index in range(COUNT)))
LABELLED = Examples(
    words=tuple(tuple(WORDS[index % 7 : index % 7 + 1 + index % 5]) for index in range(COUNT)),
    word_labels=tuple(np.arange(1 + index % 5) for index in range(COUNT)),
)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    write_tokenizer(tmp_path)
    return Model(tmp_path, signature(Task.EMBEDDING))


def tokenized(model: Model, examples: Examples, remembered: Remembered) -> TextRows:
    found = prepare(model.folder, model.signature, examples, remembered)
    assert isinstance(found, TextRows)
    return found


def same(one: TextRows, other: TextRows) -> bool:
    def equal(left: object, right: object) -> bool:
        return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(left or [], right or [], strict=True))  # type: ignore[call-overload]

    return equal(one.ids, other.ids) and (one.labels is None) == (other.labels is None) and equal(one.labels, other.labels)


@pytest.mark.parametrize("examples", [TEXTS, LABELLED, replace(LABELLED, word_labels=None)], ids=["texts", "labelled", "words"])
def test_what_was_tokenized_once_is_not_tokenized_again(model: Model, examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FakeCache()
    first = tokenized(model, examples, remembering(cache))
    monkeypatch.setattr(rows_module, "read_tokenizer", None)  # whoever calls it fails
    second = tokenized(model, examples, remembering(cache))
    assert same(first, second)
    assert first.digest == second.digest
    assert {name: value.tolist() for name, value in first.batch([3, 9]).items()} == {
        name: value.tolist() for name, value in second.batch([3, 9]).items()
    }


def test_another_tokenizer_other_texts_and_another_cut_are_found_apart(model: Model, tmp_path: Path) -> None:
    cache = FakeCache()
    (tmp_path / "other").mkdir()
    write_tokenizer(tmp_path / "other", WORDS[::-1])
    cut = Model(model.folder, model.signature.model_copy(update={"max_tokens": 4}))
    other = Model(tmp_path / "other", model.signature)
    for each, examples in ((model, TEXTS), (cut, TEXTS), (other, TEXTS), (model, Examples(texts=TEXTS.texts[::-1]))):
        plain = prepare(each.folder, each.signature, examples)
        assert isinstance(plain, TextRows)
        assert same(tokenized(each, examples, remembering(cache)), plain)
    assert len(cache.kept) == 8  # a slice and its head of each


def test_few_texts_are_tokenized_at_once(model: Model) -> None:
    cache = FakeCache()
    tokenized(model, Examples(texts=TEXTS.texts[1:]), remembering(cache))
    assert cache.calls == 0


def test_damaged_tokens_are_made_again(model: Model) -> None:
    cache = FakeCache()
    first = tokenized(model, TEXTS, remembering(cache))
    cache.kept = {name: value[:-1] for name, value in cache.kept.items()}
    assert same(first, tokenized(model, TEXTS, remembering(cache)))


def test_a_folder_without_a_tokenizer_is_a_bad_model(model: Model, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(BadModel, match=r"tokenizer\.json"):
        prepare(model.folder, model.signature, TEXTS, remembering(FakeCache()))
