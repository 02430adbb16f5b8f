"""Examples as techniques and evaluation see them, whatever file they came from."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
IGNORED = -100  # the label of a token that counts for nothing, as torch's cross-entropy names it


@dataclass(frozen=True)
class Examples:
    """`n` examples of one of three kinds, with a label for each or none at all.

    texts    strings; a label is the index of a class. Unlabelled for embeddings and causal language models.
    words    each example a list of words; its label is as long a list of indices (token classification).
    arrays   FP32 or INT64 [n, ...] by input name (images, tensors); a label is the index of a class.
    """

    texts: tuple[str, ...] = ()
    words: tuple[tuple[str, ...], ...] = ()
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    labels: Ints | None = None  # [n]
    word_labels: tuple[Ints, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts) or len(self.words) or (len(next(iter(self.arrays.values()))) if self.arrays else 0)

    @property
    def is_labelled(self) -> bool:
        return self.labels is not None or self.word_labels is not None

    @property
    def median_characters(self) -> float:
        """Of a text, or of an example's words together; 0 where examples are neither."""
        lengths = [len(text) for text in self.texts] or [sum(map(len, words)) for words in self.words]
        return float(np.median(lengths)) if lengths else 0.0

    def take(self, positions: Sequence[int] | Ints) -> Self:
        """The examples at `positions`, in that order."""
        chosen = np.asarray(positions, np.int64)
        return type(self)(
            texts=tuple(self.texts[index] for index in chosen) if self.texts else (),
            words=tuple(self.words[index] for index in chosen) if self.words else (),
            arrays={name: values[chosen] for name, values in self.arrays.items()},
            labels=self.labels[chosen] if self.labels is not None else None,
            word_labels=tuple(self.word_labels[index] for index in chosen) if self.word_labels is not None else None,
        )

    def split(self, share: float, seed: int) -> tuple[Self, Self]:
        """Disjoint (most, `share` of them) in a seeded order; each has at least one example where there are two."""
        order = np.random.default_rng(seed).permutation(len(self))
        held = min(max(1, round(len(self) * share)), len(self) - 1)
        return self.take(order[held:]), self.take(order[:held])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in it."""
        digest = hashlib.sha256()
        for part in (self.texts, self.words):
            digest.update(repr(part).encode())
        for name, values in sorted(self.arrays.items()):
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        for labels in (self.labels, *(self.word_labels or ())):
            digest.update(b"-" if labels is None else labels.tobytes())
        return digest.hexdigest()
