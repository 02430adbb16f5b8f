"""How wide a model's answer is, which graphs and configs seldom say: two rows tell. Runs in the inspection's child process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from services import backends
from services.backends import Array
from services.backends.text import pad
from services.optimization.failures import BadModel
from services.optimization.uploads import configuration
from services.repository.manifest import Signature, Task, TensorSpec

_LENGTHS = (3, 2)  # tokens of the two rows
_SIDE = 64  # of the image for a net that takes any size; small ones end in no pixel at all
_LABELLED = frozenset({Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.IMAGE_CLASSIFICATION})
_PER_TOKEN = frozenset({Task.TOKEN_CLASSIFICATION, Task.CAUSAL_LM})


def output_spec(name: str, task: Task, width: int = -1) -> TensorSpec:
    """One FP32 vector per row, or per token."""
    return TensorSpec(name=name, datatype="FP32", shape=(-1, -1, width) if task in _PER_TOKEN else (-1, width))


def sample(signature: Signature) -> Mapping[str, Array]:
    """Two rows of different lengths, or two black images."""
    if signature.task.takes_text:
        return pad([np.full(length, signature.pad_token_id) for length in _LENGTHS], signature)
    return {
        spec.name: np.zeros((len(_LENGTHS), *(size if size > 0 else _SIDE for size in spec.shape[1:])), np.float32)
        for spec in signature.inputs
    }


def answer_to_sample(folder: Path, signature: Signature) -> Array:
    """FP32 array that the loaded model answers to `sample`. Loads as serving will, which finds every weight and operator at fault.

    Raises BadModel.
    """
    (output,) = signature.outputs
    try:
        model = backends.load(folder, signature, threads=1)
        found = model.run(sample(signature), [output.name])[output.name]
        model.close()
    except backends.BackendError as error:
        raise BadModel(f"model: {error}" if isinstance(error, backends.RunError) else str(error)) from error
    return found


def described(signature: Signature, answer: Array, config: Mapping[str, Any]) -> Signature:
    """The signature with the width of `answer` and the labels that config.json names. Raises BadModel for another shape."""
    (output,) = signature.outputs
    leading = (len(_LENGTHS), max(_LENGTHS)) if signature.task in _PER_TOKEN else (len(_LENGTHS),)
    if answer.shape[:-1] != leading:
        per = "token" if signature.task in _PER_TOKEN else "row"
        raise BadModel(
            f"model: `{output.name}` has the shape {list(answer.shape)} for {len(_LENGTHS)} rows; one vector per {per} is needed"
        )
    width = answer.shape[-1]
    labels = configuration.labels(config, width) if signature.task in _LABELLED else ()
    return signature.model_copy(update={"outputs": (output_spec(output.name, signature.task, width),), "labels": labels})
