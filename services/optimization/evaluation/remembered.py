"""What models answered to examples, so that a repeated job runs none of them over the same ones again."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.optimization import folder
from services.optimization.evaluation.answers import Answers
from services.optimization.examples import Examples
from services.optimization.remembered import Arrays, Remembered, digest_for, processor
from services.optimization.rows import Rows, TextRows
from services.optimization.techniques import Model


def recall(remembered: Remembered, model: Model, examples: Examples, rows: Rows, threads: int, compute: Callable[[], Answers]) -> Answers:
    """What the model answers to `rows`, which `examples` became. Answers that are no numbers are not kept: they end what they are for."""
    if not remembered.works:
        return compute()
    digest = answers_digest(model, examples, rows, threads)
    known = remembered.find(digest)
    if known is not None:
        return decode(known)
    found = compute()
    if found.is_finite:
        remembered.keep(digest, encode(found))
    return found


def answers_digest(model: Model, examples: Examples, rows: Rows, threads: int) -> str:
    """Of all that shapes a model's answers: its files, the examples, their tokens (another model's may have cut them), the processor."""
    content = {
        "model": folder.content_digest(model.folder, model.signature),
        "examples": examples.digest,
        "tokens": rows.digest if isinstance(rows, TextRows) else "",
        "processor": [*processor(), threads],
    }
    return digest_for("answers", content)


def encode(answers: Answers) -> Arrays:
    """Per-token answers one after the other, with their lengths."""
    arrays: dict[str, NDArray[Any]] = {}
    if answers.vectors is not None:
        arrays["vectors"] = answers.vectors
    for name, rows in (("predictions", answers.predictions), ("losses", answers.losses)):
        if len(rows):
            arrays[name] = np.concatenate(rows)
            arrays[f"{name}_lengths"] = np.fromiter(map(len, rows), np.int64, len(rows))
    return arrays


def decode(arrays: Arrays) -> Answers:
    """What `encode` was given."""
    return Answers(arrays.get("vectors"), _rows(arrays, "predictions"), _rows(arrays, "losses"))


def _rows(arrays: Mapping[str, NDArray[Any]], name: str) -> list[NDArray[Any]]:
    if name not in arrays:
        return []
    return np.split(arrays[name], np.cumsum(arrays[f"{name}_lengths"])[:-1])
