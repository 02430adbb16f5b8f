"""Small models of every task, and how near a converted one answers to its source on ordinary batches."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services import backends
from services.repository.manifest import Signature
from tests.models import minilm_signature, shallow_minilm
from tests.trained_models import (
    causal_lm,
    causal_lm_signature,
    digits_resnet,
    digits_resnet_signature,
    digits_vit,
    digits_vit_signature,
    token_classifier,
    token_classifier_signature,
)

Arrays = Mapping[str, NDArray[Any]]
Made = tuple[Path, Signature]

_MAKERS: Mapping[str, tuple[Callable[[Path], Path], Callable[[], Signature]]] = {
    "embedding": (lambda folder: shallow_minilm(folder, layers=2), minilm_signature),
    "tokens": (token_classifier, token_classifier_signature),
    "lm": (causal_lm, causal_lm_signature),
    "resnet": (digits_resnet, digits_resnet_signature),
    "vit": (digits_vit, digits_vit_signature),
}


class Sources:
    """Each made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, name: str) -> Made:
        make, signature = _MAKERS[name]
        folder = self.root / name
        return (folder if folder.exists() else make(folder)), signature()


def batch(signature: Signature, rows: int = 4, tokens: int = 11) -> Arrays:
    """Rows of several lengths, or images between 0 and 1."""
    generator = np.random.default_rng(7)
    if not signature.task.takes_text:
        return {spec.name: generator.random((rows, *spec.shape[1:])).astype(np.float32) for spec in signature.inputs}
    lengths = np.linspace(2, tokens, rows).astype(int)
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return {"input_ids": generator.integers(0, 500, (rows, tokens)), "attention_mask": mask}


def answer(made: Made, arrays: Arrays) -> NDArray[Any]:
    folder, signature = made
    name = signature.outputs[0].name
    backend = backends.load(folder, signature, threads=1)
    try:
        return backend.run(arrays, [name])[name]
    finally:
        backend.close()


def cosine(source: Made, target: Made) -> float:
    """Mean cosine of the answers over `batch`, per row, or per token that is no padding."""
    arrays = batch(source[1])
    left, right = answer(source, arrays), answer(target, arrays)
    assert left.shape == right.shape
    assert left.dtype == right.dtype == np.float32
    if left.ndim == 3:
        kept = arrays["attention_mask"].astype(bool)
        left, right = left[kept], right[kept]
    return float(((left * right).sum(-1) / (np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1))).mean())


def weight_bytes(folder: Path) -> int:
    """Of the files that are no text."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in {".safetensors", ".onnx", ".ts", ".pt2", ".bin"})
