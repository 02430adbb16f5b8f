"""Examples as a model takes them: token ids of any length, or arrays of one shape."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from services.backends import LoadError
from services.backends.text import FILE_NAME, Ids, pad, read_tokenizer
from services.optimization.examples import IGNORED, Examples
from services.optimization.failures import BadModel, NotEnoughData
from services.optimization.folder import file_sha256
from services.optimization.remembered import NOTHING, Arrays, Remembered
from services.repository.manifest import Signature

Batch = Mapping[str, NDArray[Any]]

WORTH_REMEMBERING = 256  # texts; fewer are tokenized while the cache would be asked


class Rows(Protocol):
    """`lengths` [n] in tokens, zeros where rows are no texts."""

    @property
    def lengths(self) -> Ids: ...

    def __len__(self) -> int: ...

    def batch(self, positions: Sequence[int]) -> Batch:
        """The rows at `positions` under the signature's input names, texts padded on the right."""


@dataclass(frozen=True)
class TextRows:
    """Token ids with their special tokens. `labels` is one per token: a word's at its first token, IGNORED at the others."""

    ids: Sequence[Ids]
    signature: Signature
    labels: Sequence[Ids] | None = None

    @property
    def lengths(self) -> Ids:
        return np.array([len(row) for row in self.ids], np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the ids."""
        found = hashlib.sha256(np.ascontiguousarray(self.lengths).tobytes())
        for row in self.ids:
            found.update(row.tobytes())
        return found.hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, positions: Sequence[int]) -> Batch:
        return pad([self.ids[index] for index in positions], self.signature)


@dataclass(frozen=True)
class ArrayRows:
    arrays: Batch

    @property
    def lengths(self) -> Ids:
        return np.zeros(len(self), np.int64)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batch(self, positions: Sequence[int]) -> Batch:
        return {name: values[np.asarray(positions)] for name, values in self.arrays.items()}


def batches(rows: Rows, batch_rows: int) -> Iterator[tuple[list[int], Batch]]:
    """Batches of like lengths, as serving makes them: (positions in `rows`, batch)."""
    order = [int(index) for index in np.argsort(rows.lengths, kind="stable")]
    for start in range(0, len(order), batch_rows):
        yield order[start : start + batch_rows], rows.batch(order[start : start + batch_rows])


def read_model_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer. Raises BadModel."""
    try:
        return read_tokenizer(folder)
    except LoadError as error:
        raise BadModel(str(error)) from error


def encode(folder: Path, signature: Signature, texts: Sequence[str]) -> list[Ids]:
    """Each text's token ids with its special tokens, cut at the signature's max_tokens. Raises BadModel."""
    tokenizer = _truncating(folder, signature)
    return [np.array(encoding.ids, np.int64) for encoding in tokenizer.encode_batch(list(texts))]


def _truncating(folder: Path, signature: Signature) -> Tokenizer:
    tokenizer = read_model_tokenizer(folder)
    if signature.max_tokens:
        tokenizer.enable_truncation(max_length=signature.max_tokens)
    return tokenizer


def _encode_words(folder: Path, signature: Signature, examples: Examples) -> TextRows:
    encodings = _truncating(folder, signature).encode_batch([list(words) for words in examples.words], is_pretokenized=True)
    ids = [np.array(encoding.ids, np.int64) for encoding in encodings]
    if examples.word_labels is None:
        return TextRows(ids, signature)
    labels = [_token_labels(encoding.word_ids, labels) for encoding, labels in zip(encodings, examples.word_labels, strict=True)]
    return TextRows(ids, signature, labels)


def _token_labels(word_ids: Sequence[int | None], labels: Ids) -> Ids:
    """[tokens]: the label of a word at its first token."""
    found = np.full(len(word_ids), IGNORED, np.int64)
    previous = None
    for position, word in enumerate(word_ids):
        if word is not None and word != previous:
            found[position] = labels[word]
        previous = word
    return found


def _tokenized(folder: Path, signature: Signature, examples: Examples) -> TextRows:
    if examples.words:
        return _encode_words(folder, signature, examples)
    return TextRows(encode(folder, signature, examples.texts), signature)


def _recalled(folder: Path, signature: Signature, examples: Examples, remembered: Remembered) -> TextRows:
    """A lookup was measured against tokenizing: it costs a small part of it."""
    if not remembered.works:
        return _tokenized(folder, signature, examples)
    arrays = remembered.recall(
        "tokens", lambda: _described(folder, signature, examples), lambda: _flat(_tokenized(folder, signature, examples))
    )
    ends = np.cumsum(arrays["lengths"])[:-1]
    labels = np.split(arrays["labels"], ends) if "labels" in arrays else None
    return TextRows(np.split(arrays["ids"].astype(np.int64), ends), signature, labels)


def _described(folder: Path, signature: Signature, examples: Examples) -> dict[str, Any]:
    try:
        tokenizer = file_sha256(folder / FILE_NAME)
    except OSError as error:
        raise BadModel(f"{FILE_NAME}: {error.strerror}") from error
    return {"tokenizer": tokenizer, "max_tokens": signature.max_tokens, "examples": examples.digest}


def _flat(rows: TextRows) -> Arrays:
    """One row after the other. No vocabulary needs more than 32 bits."""
    labels = {"labels": np.concatenate(rows.labels)} if rows.labels is not None else {}
    return {"ids": np.concatenate(rows.ids).astype(np.int32), "lengths": rows.lengths, **labels}


def prepare(folder: Path, signature: Signature, examples: Examples, remembered: Remembered = NOTHING) -> Rows:
    """Examples as the model in `folder` takes them. Raises BadModel, and NotEnoughData for examples of another kind than its inputs."""
    if signature.task.takes_text:
        if not examples.words and not examples.texts:
            raise NotEnoughData(f"a {signature.task} model takes texts")
        return _recalled(folder, signature, examples, remembered if len(examples) >= WORTH_REMEMBERING else NOTHING)
    missing = [spec.name for spec in signature.inputs if spec.name not in examples.arrays]
    if missing:
        raise NotEnoughData(f"the data has no array {missing[0]!r}, which the model takes")
    return ArrayRows({spec.name: examples.arrays[spec.name] for spec in signature.inputs})
