"""Inputs that every model of a signature takes, for warming it up and for asking whether it still works."""

import numpy as np

from services.backends import Array
from services.backends.datatypes import DATATYPES
from services.repository.manifest import Signature, Task

IMAGE_SIDE = 64  # of an image where the net takes any size: in a smaller one, deep nets have no pixel left


def sample(signature: Signature, rows: int, tokens: int) -> dict[str, Array]:
    """A batch [rows, …] of ones, so that masks select and ids exist; what varies by length is `tokens` long, at most the model's."""
    free = {Task.TENSOR: 1, Task.IMAGE_CLASSIFICATION: IMAGE_SIDE}
    varying = free.get(signature.task, min(tokens, signature.max_tokens or tokens))
    return {
        spec.name: np.ones((rows, *(size if size > 0 else varying for size in spec.shape[1:])), np.dtype(DATATYPES[spec.datatype]))
        for spec in signature.inputs
    }
