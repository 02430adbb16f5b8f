"""Texts to token ids, and token ids to padded batches, with the model folder's own tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from services.backends import LoadError
from services.repository.manifest import Signature

FILE_NAME = "tokenizer.json"
Ids = NDArray[np.int64]
Batch = Mapping[str, Ids]


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer without the truncation and padding that its file may ask for. Raises LoadError."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / FILE_NAME))
    except Exception as error:  # the library raises bare Exception
        raise LoadError(f"{FILE_NAME}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def pad(rows: Sequence[Ids], signature: Signature) -> Batch:
    """One batch [rows, longest], padded on the right with the mask telling; the names are those of the signature's inputs."""
    shape = (len(rows), max(len(row) for row in rows))
    ids = np.full(shape, signature.pad_token_id, np.int64)
    mask = np.zeros(shape, np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    every: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}
    return {spec.name: every[spec.name] for spec in signature.inputs}
