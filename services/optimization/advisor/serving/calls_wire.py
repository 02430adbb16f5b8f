"""Replayed requests as bytes on the wire."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import Message
from hone.inference.v1 import inference_pb2 as pb
from numpy.typing import NDArray

from services.backends.datatypes import datatype_of
from services.optimization.advisor.serving.material import Material, Texts
from services.optimization.advisor.serving.traffic import Row
from services.repository.manifest import Task

_SERVICE = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name


@dataclass(frozen=True)
class Calls:
    """`method` is the gRPC path; `request` makes the bytes of one call, of a reference and rows."""

    method: str
    request: Callable[[str, Sequence[Row]], bytes]


def calls_for(material: Material, task: Task) -> Calls:
    """Embed or Classify where texts are sent, else Predict. Rows without variants bypass the cache, which would know them all."""
    options = pb.CallOptions(truncate=True, bypass_cache=not material.can_vary)

    def texts(reference: str, rows: Sequence[Row]) -> bytes:
        assert isinstance(material, Texts)  # noqa: S101 (chosen below)
        kind = pb.ClassifyRequest if task is Task.CLASSIFICATION else pb.EmbedRequest
        return _bytes(kind(model=reference, texts=material.texts_of(rows), options=options))

    def tensors(reference: str, rows: Sequence[Row]) -> bytes:
        assert not isinstance(material, Texts)  # noqa: S101 (chosen below)
        return _bytes(pb.PredictRequest(model=reference, inputs=_named(material.tensors_of(rows)), options=options))

    if isinstance(material, Texts):
        return Calls(f"/{_SERVICE}/{'Classify' if task is Task.CLASSIFICATION else 'Embed'}", texts)
    return Calls(f"/{_SERVICE}/Predict", tensors)


def _named(arrays: Mapping[str, NDArray[Any]]) -> list[pb.NamedTensor]:
    return [
        pb.NamedTensor(
            name=name, tensor=pb.Tensor(datatype=datatype_of(array), shape=array.shape, data=np.ascontiguousarray(array).tobytes())
        )
        for name, array in arrays.items()
    ]


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()
