"""Texts to rows of token ids, checked against the model's limits."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from services.backends.text import Ids, read_tokenizer
from services.chassis.faults import InvalidField
from services.repository.manifest import Signature

# Up to this a request is tokenized at once, which took 0.2 ms per 500 characters; a longer one would hold up every other caller.
INLINE_CHARS = 4096


class TextEncoder:
    """A version's tokenizer. Long requests are encoded in `pool`, short ones at once."""

    def __init__(self, folder: Path, signature: Signature, max_chars: int, pool: ThreadPoolExecutor) -> None:
        """Raises LoadError."""
        self._tokenizer = read_tokenizer(folder)
        self._max_tokens = signature.max_tokens
        self._max_chars = max_chars
        self._pool = pool
        if self._max_tokens:
            self._tokenizer.enable_truncation(max_length=self._max_tokens)

    @property
    def vocabulary_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    async def encode(self, texts: Sequence[str], *, truncate: bool) -> list[Ids]:
        """INT64 [tokens] for each text, special tokens included.

        Raises:
            InvalidField: a text is empty, or over the limit and `truncate` is off.
        """
        cut = [self._checked(index, text, truncate) for index, text in enumerate(texts)]
        if sum(map(len, cut)) <= INLINE_CHARS:
            return self._encode(cut, truncate)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode, cut, truncate)

    def _checked(self, index: int, text: str, truncate: bool) -> str:
        if not text.strip():
            raise InvalidField(f"texts[{index}]", "must not be empty")
        if len(text) > self._max_chars and not truncate:
            raise InvalidField(
                f"texts[{index}]", f"has {len(text)} characters, the limit is {self._max_chars}; set options.truncate to cut it"
            )
        return text[: self._max_chars]

    def _encode(self, texts: list[str], truncate: bool) -> list[Ids]:
        rows = []
        # The fast one leaves out where in the text each token stands.
        for index, encoding in enumerate(self._tokenizer.encode_batch_fast(texts)):
            if encoding.overflowing and not truncate:
                raise InvalidField(f"texts[{index}]", f"is over the model's {self._max_tokens} tokens; set options.truncate to cut it")
            rows.append(np.array(encoding.ids, np.int64))
        return rows
