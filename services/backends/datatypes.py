"""The Open Inference Protocol's datatypes as numpy's, and arrays held against a model's inputs."""

from collections.abc import Mapping, Sequence

from services.backends import Array, RunError
from services.repository.manifest import Signature, TensorSpec

DATATYPES: Mapping[str, str] = {
    "BOOL": "|b1",
    "INT8": "|i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "|u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def datatype_of(array: Array) -> str:
    """The protocol's name of an array's dtype."""
    return _NAMES[array.dtype.newbyteorder("<").str]


def check_inputs(signature: Signature, inputs: Mapping[str, Array]) -> None:
    """For engines of native code, which take what they are given at its word and read past its end. Raises RunError.

    Token ids are held against the vocabulary elsewhere, see `limits`: a signature does not tell it.
    """
    for spec in signature.inputs:
        if spec.name not in inputs:
            raise RunError(f"the input {spec.name!r} is missing")
        array = inputs[spec.name]
        if array.dtype.str != DATATYPES.get(spec.datatype) or not _fits(array.shape, spec):
            raise RunError(f"{spec.name!r} is {array.dtype} {list(array.shape)}; the model takes {spec.datatype} {list(spec.shape)}")
    leading = {inputs[spec.name].shape[: 2 if signature.task.takes_text else 1] for spec in signature.inputs}
    if len(leading) > 1:
        raise RunError(f"inputs differ in rows or tokens: {sorted(leading)}")


def _fits(shape: Sequence[int], spec: TensorSpec) -> bool:
    return len(shape) == len(spec.shape) and all(want in (-1, have) for want, have in zip(spec.shape, shape, strict=True))
