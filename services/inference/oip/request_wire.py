"""A request of the protocol as what the core is asked."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hone.oip.v1 import open_inference_pb2 as pb

from services.backends import Array
from services.chassis.faults import InvalidField
from services.inference.oip.bytes_tensor import decode_bytes, decode_texts
from services.inference.oip.faults import NotOffered
from services.inference.oip.parameters import Parameters, Value, read_parameters, whole
from services.inference.oip.tensors import BYTES, HALVES, count_elements, raw_array, typed_array

TEXT = "text"  # the input that a text model takes instead of token ids
_SHARED_MEMORY = "shared_memory_region"
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
_Input = pb.ModelInferRequest.InferInputTensor


class Call(NamedTuple):
    """Either `texts` or `inputs` is asked. `largest` holds the k of outputs asked as classifications, `raw` how the answer is wanted."""

    reference: str
    inputs: Mapping[str, Array]
    texts: Sequence[str] | None
    outputs: tuple[str, ...]
    largest: Mapping[str, int]
    raw: bool
    parameters: Parameters


def read_call(request: pb.ModelInferRequest) -> Call:
    """Raises InvalidField, NotOffered."""
    inputs, raw = request.inputs, list(request.raw_input_contents)
    if raw and len(raw) != len(inputs):
        raise InvalidField("raw_input_contents", f"has {len(raw)} entries for {len(inputs)} inputs; it must be one for each, or none")
    texts: Sequence[str] | None = None
    arrays: dict[str, Array] = {}
    for index, entry in enumerate(inputs):
        name = entry.name
        if name in arrays or (texts is not None and name == TEXT):
            raise InvalidField(f"inputs[{index}].name", f"{name!r} is named twice")
        _check(name, entry, typed=not raw)
        data = raw[index] if raw else None
        if name == TEXT and entry.datatype == BYTES:
            texts = _texts(f"inputs[{name}]", entry, data)
        else:
            arrays[name] = _array(f"inputs[{name}]", entry, data)
    if texts is not None and arrays:
        raise InvalidField("inputs", f"{TEXT!r} must be alone, not beside {', '.join(map(repr, arrays))}")
    outputs, largest = _outputs(request.outputs)
    parameters = {name: _value(given) for name, given in request.parameters.items()} if request.parameters else {}
    reference = reference_of(request.model_name, request.model_version)
    return Call(reference, arrays, texts, outputs, largest, bool(raw), read_parameters(parameters))


def reference_of(name: str, version: str) -> str:
    """Our reference for a name and the protocol's version; empty follows the channel. Raises InvalidField."""
    if not version:
        return name
    if not (version.isascii() and version.isdigit()):
        raise InvalidField("model_version", f"must be a whole number or empty, not {version[:40]!r}")
    if "@" in name or ":" in name:
        raise InvalidField("model_version", f"must be empty: the name {name[:80]!r} says which version")
    return f"{name}@{version}"


def _check(name: str, entry: _Input, *, typed: bool) -> None:
    if entry.parameters and _SHARED_MEMORY in entry.parameters:
        raise NotOffered(f"inputs[{name}].parameters[{_SHARED_MEMORY}]: shared memory is not offered; send the tensor in the request")
    if not typed and entry.HasField("contents"):
        raise InvalidField(f"inputs[{name}].contents", "must not be set beside raw_input_contents")


def _array(field: str, entry: _Input, data: bytes | None) -> Array:
    datatype = entry.datatype
    if datatype == BYTES:
        raise InvalidField(f"{field}.datatype", f"{BYTES} is taken by the input {TEXT!r} of text models alone")
    shape = entry.shape[:]  # once: each look into a message's list is a call
    if data is not None:
        return raw_array(field, datatype, shape, data)
    if datatype in HALVES:
        raise InvalidField(f"{field}.contents", f"{datatype} has no typed contents; send it in raw_input_contents")
    name = CONTENTS.get(datatype)
    return typed_array(field, datatype, shape, getattr(entry.contents, name) if name else ())


def _texts(field: str, entry: _Input, data: bytes | None) -> list[str]:
    shape = entry.shape[:]
    count = count_elements(field, shape)
    if len(shape) > 2 or count != shape[0]:
        raise InvalidField(f"{field}.shape", f"{list(shape[:8])} must be [rows] or [rows, 1]")
    if data is not None:
        return decode_texts(field, decode_bytes(field, data, count))
    elements = entry.contents.bytes_contents
    if len(elements) != count:
        raise InvalidField(field, f"has {len(elements)} elements in the contents of {BYTES}, its shape makes {count}")
    return decode_texts(field, elements)


def _outputs(asked: Sequence[pb.ModelInferRequest.InferRequestedOutputTensor]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names in the order asked, and the k of those asked as classifications."""
    largest: dict[str, int] = {}
    names: dict[str, None] = {}
    for index, entry in enumerate(asked):
        if entry.name in names:
            raise InvalidField(f"outputs[{index}].name", f"{entry.name!r} is named twice")
        names[entry.name] = None
        if entry.parameters and (k := _largest(f"outputs[{entry.name}].parameters", entry.parameters)):
            largest[entry.name] = k
    return tuple(names), largest


def _largest(field: str, given: Mapping[str, pb.InferParameter]) -> int:
    """The k of a classification; 0 asks for the tensor itself."""
    if _SHARED_MEMORY in given:
        raise NotOffered(f"{field}[{_SHARED_MEMORY}]: shared memory is not offered; the tensor comes in the answer")
    return whole(f"{field}[classification]", _value(given["classification"])) if "classification" in given else 0


def _value(given: pb.InferParameter) -> Value:
    kind = given.WhichOneof("parameter_choice")
    return getattr(given, kind) if kind is not None else None
