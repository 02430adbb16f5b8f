"""The core's answer as the protocol's."""

from collections.abc import Mapping, MutableMapping, Sequence

import numpy as np
from hone.oip.v1 import open_inference_pb2 as pb

from services.backends import Array
from services.backends.datatypes import datatype_of
from services.inference.calls import Result, Served
from services.inference.oip.bytes_tensor import encode_bytes
from services.inference.oip.classification import largest
from services.inference.oip.request_wire import CONTENTS, Call
from services.inference.oip.tensors import BYTES, HALVES

_Output = pb.ModelInferResponse.InferOutputTensor


def write_answer(request: pb.ModelInferRequest, call: Call, result: Result, replica: str) -> pb.ModelInferResponse:
    """In raw form where the request was in it, else typed; raw too where a datatype has no typed form."""
    response = pb.ModelInferResponse(model_name=request.model_name, model_version=str(result.served.version), id=request.id)
    _tell(response.parameters, result.served, replica)
    arrays: Mapping[str, Array | list[list[bytes]]] = result.outputs
    if call.largest:
        arrays = {name: _asked(call, result, name) for name in result.outputs}
    raw = call.raw
    for name, array in arrays.items():
        datatype = BYTES if isinstance(array, list) else datatype_of(array)
        response.outputs.add(name=name, datatype=datatype, shape=_shape(array))
        raw = raw or datatype in HALVES
    if raw:
        response.raw_output_contents.extend([_raw(array) for array in arrays.values()])
    else:
        for output, array in zip(response.outputs, arrays.values(), strict=True):
            _type(output, array)
    return response


def _asked(call: Call, result: Result, name: str) -> Array | list[list[bytes]]:
    array = result.outputs[name]
    k = call.largest.get(name)
    return array if k is None else largest(array, k, result.labels)


def _shape(array: Array | list[list[bytes]]) -> Sequence[int]:
    return (len(array), len(array[0])) if isinstance(array, list) else array.shape


def _raw(array: Array | list[list[bytes]]) -> bytes:
    if isinstance(array, list):
        return encode_bytes(element for row in array for element in row)
    return np.ascontiguousarray(array).tobytes()


def _type(output: _Output, array: Array | list[list[bytes]]) -> None:
    if isinstance(array, list):
        output.contents.bytes_contents.extend(element for row in array for element in row)
    else:
        getattr(output.contents, CONTENTS[output.datatype]).extend(array.ravel().tolist())


def _tell(parameters: MutableMapping[str, pb.InferParameter], served: Served, replica: str) -> None:
    parameters["hone_variant"].string_param = served.variant
    parameters["hone_replica"].string_param = replica
    parameters["hone_cached_rows"].int64_param = served.cached_rows
    parameters["hone_batch_rows"].int64_param = served.batch_rows
    parameters["hone_tokens"].int64_param = served.tokens
    parameters["hone_queue_ns"].int64_param = served.queue_ns
    parameters["hone_tokenization_ns"].int64_param = served.tokenization_ns
    parameters["hone_compute_ns"].int64_param = served.compute_ns
