"""Whether a converted model answers as its source does, on shapes other than the one it was converted with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services import backends
from services.optimization.failures import Toolchain
from services.repository.manifest import Signature, TensorSpec

Arrays = Mapping[str, NDArray[Any]]
Answer = Callable[[Arrays], NDArray[Any]]

# What conversions are made with: two rows, the second padded, and a length that nothing in a model equals by design.
TRACED_ROWS, TRACED_TOKENS = 2, 7
# (rows, tokens) other than the traced ones: one row, many rows, one token, longer than any example.
TEXT_SHAPES = ((1, 1), (1, 3), (3, 8), (5, 33), (16, 12), (2, 64))
IMAGE_ROWS = (1, 3, 8)
IMAGE_SIZES = (64, 96)  # of models that take any; the deepest convolutional nets halve five times
IMAGE_CHANNELS = 3
TENSOR_ROWS, TENSOR_SIZE = (1, 2, 5), 8

TEXT_AXES = ("rows", "tokens")
IMAGE_AXES = ("rows", "channels", "height", "width")

# Largest difference allowed, relative to the largest value, by the dtype that computes. A conversion that baked a shape or a
# mask in is off by the size of the values themselves; what a lowered precision costs is measured by the evaluation.
TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1, "int8": 1e-1}


def axes(signature: Signature, spec: TensorSpec) -> dict[int, str]:
    """The dimensions of an input or output that vary, by the names that inputs and outputs share."""
    names = TEXT_AXES if signature.task.takes_text else IMAGE_AXES
    return {index: names[index] for index, size in enumerate(spec.shape) if size == -1}


def _text(signature: Signature, rows: int, tokens: int, vocabulary: int) -> Arrays:
    """Random ids; every row but the first is padded, each by another length."""
    ids = np.random.default_rng(rows * tokens).integers(0, vocabulary, (rows, tokens), np.int64)
    lengths = np.maximum(1, tokens - np.arange(rows) % tokens)
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {spec.name: every[spec.name] for spec in signature.inputs}


def _array(spec: TensorSpec, rows: int, free: Sequence[int]) -> NDArray[Any]:
    """Random values of a spec's datatype; `free` are the sizes of its varying dimensions after the row."""
    sizes = iter(free)
    shape = (rows, *(next(sizes) if size == -1 else size for size in spec.shape[1:]))
    generator = np.random.default_rng(rows)
    if spec.datatype.startswith("FP"):
        return generator.standard_normal(shape).astype({"FP16": np.float16, "FP64": np.float64}.get(spec.datatype, np.float32))
    # An integer is most often an index or a flag, and of the smallest table 0 and 1 are rows.
    return generator.integers(0, 2, shape).astype({"BOOL": np.bool_}.get(spec.datatype, np.dtype(spec.datatype.lower())))


def _arrays(signature: Signature, rows: int, size: int) -> Arrays:
    found = {}
    for spec in signature.inputs:
        unknown_channels = len(spec.shape) == 4 and spec.shape[1] == -1
        free = [IMAGE_CHANNELS] * unknown_channels + [size] * len(spec.shape)
        found[spec.name] = _array(spec, rows, free)
    return found


def traced(signature: Signature, vocabulary: int) -> Arrays:
    """The example that a model is converted with."""
    if signature.task.takes_text:
        return _text(signature, TRACED_ROWS, TRACED_TOKENS, vocabulary)
    return _arrays(signature, TRACED_ROWS, IMAGE_SIZES[0])


def trials(signature: Signature, vocabulary: int) -> Iterator[Arrays]:
    """What conversions are checked on: other rows and lengths of texts, other rows of images and, where the model takes any, sizes."""
    if signature.task.takes_text:
        longest = signature.max_tokens or max(tokens for _, tokens in TEXT_SHAPES)
        return (_text(signature, rows, min(tokens, longest), vocabulary) for rows, tokens in TEXT_SHAPES)
    if any(len(spec.shape) == 4 for spec in signature.inputs):
        free = any(size == -1 for spec in signature.inputs for size in spec.shape[2:])
        sizes = IMAGE_SIZES if free else IMAGE_SIZES[:1]
        return (_arrays(signature, rows, size) for rows in IMAGE_ROWS for size in sizes)
    return (_arrays(signature, rows, TENSOR_SIZE) for rows in TENSOR_ROWS)


def deviation(found: NDArray[Any], wanted: NDArray[Any], mask: NDArray[Any] | None = None) -> float:
    """Largest difference relative to the largest wanted value; infinite for another shape or a value that is no number.

    `mask` [rows, tokens] leaves out what a model answers at padding, which nobody reads.
    """
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    if mask is not None and found.ndim == 3:
        found, wanted = found[mask.astype(bool)], wanted[mask.astype(bool)]
    return float(np.abs(found.astype(np.float64) - wanted).max() / max(np.abs(wanted).max(), 1e-12))


def module_answer(module: Any) -> Answer:
    """A `services.backends.torch` module as a function of arrays."""
    import torch

    def answer(arrays: Arrays) -> NDArray[Any]:
        with torch.inference_mode():
            found: NDArray[Any] = module(**{name: torch.from_numpy(value) for name, value in arrays.items()}).float().numpy()
        return found

    return answer


def backend_answer(backend: backends.Backend, signature: Signature) -> Answer:
    """A loaded model as a function of arrays, for its first output."""
    name = signature.outputs[0].name
    return lambda arrays: backend.run(arrays, [name])[name]


def _shapes(arrays: Arrays) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in arrays.items())


def verify(
    technique: str, source: Answer, target: Path, signature: Signature, tried: Sequence[Arrays], *, threads: int, tolerance: float
) -> float:
    """Largest deviation of the model in `target` from `source` over the inputs `tried`.

    Raises Toolchain when it does not load, fails on one of them, or deviates by more than `tolerance`; the text names
    `technique` and the shapes.
    """
    try:
        converted = backends.load(target, signature, threads)
    except backends.LoadError as error:
        raise Toolchain(f"{technique}: the converted model does not load: {error}") from error
    try:
        answer = backend_answer(converted, signature)
        return max((_check(technique, source, answer, arrays, tolerance) for arrays in tried), default=0.0)
    finally:
        converted.close()


def _check(technique: str, source: Answer, converted: Answer, arrays: Arrays, tolerance: float) -> float:
    try:
        found = converted(arrays)
    except backends.RunError as error:
        raise Toolchain(f"{technique}: the converted model fails on {_shapes(arrays)}: {error}") from error
    off = deviation(found, source(arrays), arrays.get("attention_mask"))
    if off > tolerance:
        raise Toolchain(
            f"{technique}: the converted model deviates from its source by {off:.2g} on {_shapes(arrays)}; {tolerance:g} is allowed"
        )
    return off


def runnable(source: Answer, tried: Sequence[Arrays]) -> list[Arrays]:
    """Those inputs that the source itself answers: made-up values may mean nothing to a model of named tensors."""
    found = []
    for arrays in tried:
        try:
            answer = source(arrays)
        except backends.RunError:
            continue
        if np.isfinite(answer).all():
            found.append(arrays)
    return found
