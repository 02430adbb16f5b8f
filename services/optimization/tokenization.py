"""Evaluation and calibration texts as token ids and as padded batches of like lengths."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from services.backends import LoadError
from services.backends.text import Batch, Ids, pad, read_tokenizer
from services.optimization.failures import BadModel
from services.repository.manifest import Signature


def read_model_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer. Raises BadModel."""
    try:
        return read_tokenizer(folder)
    except LoadError as error:
        raise BadModel(str(error)) from error


def encode(folder: Path, signature: Signature, texts: Sequence[str]) -> list[Ids]:
    """Each text's token ids with its special tokens, cut at the signature's max_tokens. Raises BadModel."""
    tokenizer = read_model_tokenizer(folder)
    if signature.max_tokens:
        tokenizer.enable_truncation(max_length=signature.max_tokens)
    return [np.array(encoding.ids, np.int64) for encoding in tokenizer.encode_batch(list(texts))]


def batches(rows: Sequence[Ids], signature: Signature, batch_rows: int) -> Iterator[tuple[list[int], Batch]]:
    """Batches of like lengths, as serving makes them: (positions in `rows`, padded batch)."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), batch_rows):
        chosen = order[start : start + batch_rows]
        yield chosen, pad([rows[index] for index in chosen], signature)
