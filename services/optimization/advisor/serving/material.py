"""The rows that a replay sends: recorded ones, and as many unlike them as it takes that nothing but stated repeats is remembered."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.backends.text import Batch, Ids, pad
from services.optimization.advisor.serving.traffic import Row, Traffic
from services.optimization.examples import Examples
from services.optimization.failures import NotEnoughData
from services.optimization.rows import TextRows, encode, prepare, read_model_tokenizer
from services.repository.manifest import Signature, Task

_TEXT_CALLS = frozenset({Task.EMBEDDING, Task.CLASSIFICATION})  # that take texts themselves, and tokenize them in the service
_LEAST_SCALE = 1e-3  # of a value that is changed a little: next to 0 the change would be a denormal, which is slow to compute with

T = TypeVar("T", bound=Hashable)


def reordered(items: Sequence[T], number: int) -> tuple[list[T], int]:
    """The items in their number-th order, 0 their own, and what orders cannot tell of the number: no two numbers have both in common.

    As Lehmer's code, but each place chooses among items that differ: exchanging equal ones would change nothing.
    """
    rest, order = list(items), []
    while number and len(rest) > 1:
        choices = list(dict.fromkeys(rest))
        number, place = divmod(number, len(choices))
        order.append(choices[place])
        rest.remove(choices[place])
    return order + rest, number


@dataclass(frozen=True)
class Texts:
    """Variants have the words in another order, and where no order is left a number too: as long, within a token or two."""

    texts: Sequence[str]
    lengths: Sequence[int]  # in tokens
    can_vary = True

    def __len__(self) -> int:
        return len(self.texts)

    def texts_of(self, rows: Sequence[Row]) -> list[str]:
        return [self._variant(self.texts[row.source], row.variant) for row in rows]

    @staticmethod
    def _variant(text: str, variant: int) -> str:
        if not variant:
            return text
        words, round_number = reordered(text.split(), variant)
        return " ".join([*words, str(round_number)] if round_number else words)


@dataclass(frozen=True)
class TokenIds:
    """Variants have the tokens between the first and the last in another order, then other tokens."""

    ids: Sequence[Ids]
    vocabulary: int
    signature: Signature
    can_vary = True

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Sequence[int]:
        return [len(row) for row in self.ids]

    def tensors_of(self, rows: Sequence[Row]) -> Batch:
        return pad([self._variant(self.ids[row.source], row.variant) for row in rows], self.signature)

    def _variant(self, ids: Ids, variant: int) -> Ids:
        inner, round_number = reordered(ids[1:-1].tolist(), variant)
        varied = np.array([*ids[:1], *inner, *ids[1:][-1:]], np.int64)
        if round_number:
            middle = len(varied) // 2
            varied[middle] = (varied[middle] + round_number) % self.vocabulary
        return varied


@dataclass(frozen=True)
class Arrays:
    """Variants have one number changed in its last digits; arrays of whole numbers, of which none may be changed, have none."""

    arrays: Mapping[str, NDArray[Any]]
    lengths: Sequence[int] = ()

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def can_vary(self) -> bool:
        return bool(self._varied)

    @property
    def _varied(self) -> str:
        """The input whose numbers may be changed."""
        return next((name for name, values in self.arrays.items() if np.issubdtype(values.dtype, np.floating)), "")

    def tensors_of(self, rows: Sequence[Row]) -> Mapping[str, NDArray[Any]]:
        found = {name: values[[row.source for row in rows]] for name, values in self.arrays.items()}
        if self._varied:
            for values, row in zip(found[self._varied], rows, strict=True):
                _change(values.reshape(-1), row.variant)
        return found


def _change(flat: NDArray[Any], variant: int) -> None:
    if variant:
        steps, place = divmod(variant, flat.size)
        flat[place] += (steps + 1) * np.finfo(flat.dtype).eps * max(abs(float(flat[place])), _LEAST_SCALE)


Material = Texts | TokenIds | Arrays


def material_of(traffic: Traffic, folder: Path, signature: Signature, examples: Examples, seed: int) -> Material:
    """What the traffic asks for, else the examples, as the model in `folder` takes them. Raises NotEnoughData, BadModel."""
    if traffic.token_lengths:
        return _of_lengths(traffic.token_lengths, folder, signature, seed)
    if traffic.texts and not signature.task.takes_text:
        raise NotEnoughData(f"traffic.texts: the model is for {signature.task}, which takes no texts")
    examples = Examples(texts=traffic.texts) if traffic.texts else examples
    if signature.task in _TEXT_CALLS and examples.texts:
        return Texts(examples.texts, [len(ids) for ids in encode(folder, signature, examples.texts)])
    rows = prepare(folder, signature, examples)
    if isinstance(rows, TextRows):
        return TokenIds(rows.ids, 1 + max(int(ids.max()) for ids in rows.ids), signature)
    return Arrays({name: np.ascontiguousarray(values) for name, values in rows.batch(range(len(rows))).items()})


def _of_lengths(lengths: Sequence[int], folder: Path, signature: Signature, seed: int) -> TokenIds:
    """Any tokens: a model's time depends on how many there are, not on which. The service's tokenizing is left out."""
    if not signature.task.takes_text:
        raise NotEnoughData(f"traffic.token_lengths: the model is for {signature.task}, which takes no tokens")
    vocabulary = int(read_model_tokenizer(folder).get_vocab_size())
    draw = np.random.default_rng(seed)
    most = signature.max_tokens or max(lengths)
    return TokenIds([draw.integers(0, vocabulary, min(length, most)) for length in lengths], vocabulary, signature)
