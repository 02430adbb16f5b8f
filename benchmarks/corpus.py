"""Real data for every task, without a download and the same on every machine with the same versions installed.

Each kind is cut once into a part to train on and a part held out, by its content: no seed or number of examples moves an
example from one to the other.
"""

import hashlib
import io
import keyword
import random
import tokenize
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from benchmarks.sentences import every_labelled_sentence, sources

Part = Literal["train", "held_out"]
Words = tuple[str, ...]
T = TypeVar("T")

DIGITS = tuple("0123456789")
TAGS = ("keyword", "definition", "call", "attribute", "name", "number", "string", "operator")
_HELD_OUT_SHARE = 0.2
_TAGGED_FILES = 24
_WORDS = range(4, 25)
_LONGEST_WORD = 24
_KINDS = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.OP: "operator"}


class Images(NamedTuple):
    """`pixel_values` FP32 [n, 1, 8, 8] in -1 to 1, `labels` INT64 [n] by DIGITS."""

    pixel_values: NDArray[np.float32]
    labels: NDArray[np.int64]


class Tagged(NamedTuple):
    """Lines of Python source in words, and the index in TAGS of each word."""

    words: list[Words]
    tags: list[NDArray[np.int64]]


def is_held_out(text: str) -> bool:
    """By a digest: what an example is decides where it belongs."""
    return hashlib.sha256(text.encode()).digest()[0] < 256 * _HELD_OUT_SHARE


def digits(part: Part) -> Images:
    """scikit-learn's 1797 handwritten digits: 1438 to train on, 359 held out."""
    data = load_digits()
    pixels = (data.images.astype(np.float32) / 8 - 1)[:, None]
    order = np.random.default_rng(0).permutation(len(pixels))
    held = round(len(order) * _HELD_OUT_SHARE)
    chosen = order[:held] if part == "held_out" else order[held:]
    return Images(pixels[chosen], data.target[chosen].astype(np.int64))


def origins(n: int, part: Part, seed: int = 0) -> list[tuple[str, str]]:
    """(sentence of a docstring, package that it comes from). Raises ValueError where there are fewer than `n`."""
    found = [pair for pair in every_labelled_sentence() if is_held_out(pair[0]) == (part == "held_out")]
    return _drawn(found, n, seed)


def prose(n: int, part: Part, seed: int = 0) -> list[str]:
    """Sentences of installed documentation, for next-token prediction. Raises ValueError where there are fewer than `n`."""
    return [sentence for sentence, _ in origins(n, part, seed)]


def source_lines(n: int, part: Part, seed: int = 0) -> Tagged:
    """Lines of numpy's source, tagged by Python's own tokenizer. Raises ValueError where there are fewer than `n`."""
    chosen = _drawn([line for line in _tagged_lines() if is_held_out(" ".join(line[0])) == (part == "held_out")], n, seed)
    return Tagged([words for words, _ in chosen], [np.array([TAGS.index(tag) for tag in tags], np.int64) for _, tags in chosen])


def _drawn(found: Sequence[T], n: int, seed: int) -> list[T]:
    if n > len(found):
        raise ValueError(f"{n} examples were asked for; the corpus holds {len(found)}")
    return random.Random(seed).sample(found, n)


@cache
def _tagged_lines() -> list[tuple[Words, Words]]:
    """Distinct logical lines (words, tags), in the order of the alphabet."""
    lines = {words: tags for source in sources("numpy", _TAGGED_FILES) for words, tags in _lines(source)}
    return sorted(lines.items())


def _lines(source: str) -> Iterator[tuple[Words, Words]]:
    line: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NEWLINE:
            if len(line) in _WORDS and all(_is_word(part) for part in line):
                yield tuple(part.string for part in line), tuple(_tag(line, index) for index in range(len(line)))
            line = []
        elif token.type not in (tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.COMMENT):
            line.append(token)


def _is_word(token: tokenize.TokenInfo) -> bool:
    """Short enough to be told apart by its pieces, and without the white space that would make it several words."""
    return len(token.string) <= _LONGEST_WORD and not any(map(str.isspace, token.string)) and token.type in (*_KINDS, tokenize.NAME)


def _tag(line: Sequence[tokenize.TokenInfo], index: int) -> str:
    token = line[index]
    before = line[index - 1].string if index else ""
    after = line[index + 1].string if index + 1 < len(line) else ""
    if token.type in _KINDS:
        return _KINDS[token.type]
    if keyword.iskeyword(token.string):
        return "keyword"
    if before in ("def", "class"):
        return "definition"
    if after == "(":
        return "call"
    return "attribute" if before == "." else "name"
