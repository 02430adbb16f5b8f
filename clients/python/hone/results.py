"""What inference calls answer, with numpy arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hone.inference.v1 import inference_pb2 as pb

# The Open Inference Protocol's names; the wire is little-endian.
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


@dataclass(frozen=True, slots=True)
class Embeddings:
    """`vectors` is float32 [texts, dimensions], in the order asked."""

    vectors: NDArray[np.float32]
    served: pb.Served


@dataclass(frozen=True, slots=True)
class ScoredLabel:
    """`score` is the softmax over all labels."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Classifications:
    """For each text its labels, most probable first."""

    labels: list[list[ScoredLabel]]
    served: pb.Served


@dataclass(frozen=True, slots=True)
class Predictions:
    """Outputs by name, each with the rows as first dimension."""

    outputs: dict[str, NDArray[Any]]
    served: pb.Served


def tensor(array: NDArray[Any]) -> pb.Tensor:
    """Raises TypeError for a dtype that has no name on the wire."""
    name = _NAMES.get(array.dtype.newbyteorder("<").str)
    if name is None:
        raise TypeError(f"arrays of {array.dtype} cannot be sent; known are {', '.join(DATATYPES)}")
    return pb.Tensor(datatype=name, shape=array.shape, data=np.ascontiguousarray(array, DATATYPES[name]).tobytes())


def array(message: pb.Tensor) -> NDArray[Any]:
    """A view of the message's bytes."""
    return np.frombuffer(message.data, DATATYPES[message.datatype]).reshape(tuple(message.shape))


def embeddings(response: pb.EmbedResponse) -> Embeddings:
    return Embeddings(array(response.embeddings), response.served)


def classifications(response: pb.ClassifyResponse) -> Classifications:
    rows = [[ScoredLabel(label.label, label.score) for label in row.labels] for row in response.classifications]
    return Classifications(rows, response.served)


def predictions(response: pb.PredictResponse) -> Predictions:
    return Predictions({entry.name: array(entry.tensor) for entry in response.outputs}, response.served)


def predict_request(model: str, inputs: Mapping[str, NDArray[Any]], outputs: tuple[str, ...], options: pb.CallOptions) -> pb.PredictRequest:
    named = [pb.NamedTensor(name=name, tensor=tensor(np.asarray(value))) for name, value in inputs.items()]
    return pb.PredictRequest(model=model, inputs=named, outputs=outputs, options=options)
