"""Real sentences chosen by their number of tokens."""

import random
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

from benchmarks.sentences import PACKAGES, labelled_sentences
from services.backends.text import read_tokenizer

FIXED_TOKENS = 16
SHORTEST, LONGEST, MEDIAN = 4, 64, 20


def texts_of(kind: str, folder: Path, count: int, seed: int = 0) -> list[str]:
    """`fixed`: 16 tokens each. `mixed`: 4 to 64 tokens, log-normal with the median 20, in random order.

    `folder` holds the tokenizer that counts. Where sentences of a length are rare they come again.
    """
    by_length = _by_length(folder)
    draw = random.Random(seed)
    lengths = [FIXED_TOKENS] * count if kind == "fixed" else list(_mixed(count, draw))
    known = sorted(by_length)
    return [draw.choice(by_length[known[min(len(known) - 1, bisect_left(known, length))]]) for length in lengths]


def _mixed(count: int, draw: random.Random) -> Iterator[int]:
    for _ in range(count):
        yield min(LONGEST, max(SHORTEST, round(MEDIAN * draw.lognormvariate(0.0, 0.6))))


def _by_length(folder: Path) -> dict[int, list[str]]:
    """Sentences and their first words, by tokens with the special ones."""
    tokenizer = read_tokenizer(folder)
    found: dict[int, list[str]] = {}
    sentences = [sentence for sentence, _ in labelled_sentences(3000, 0, PACKAGES)]
    shorter = [" ".join(sentence.split()[:4]) for sentence in sentences[:400]]
    for sentence, encoding in zip([*sentences, *shorter], tokenizer.encode_batch([*sentences, *shorter]), strict=True):
        if len(encoding.ids) <= LONGEST:
            found.setdefault(len(encoding.ids), []).append(sentence)
    return found
