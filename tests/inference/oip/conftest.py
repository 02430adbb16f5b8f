"""Small models of every datatype and a text model, made in milliseconds, and what speaks the protocol to them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hone.oip.v1 import open_inference_pb2 as pb

from services.backends.datatypes import DATATYPES
from services.inference.oip import wire
from services.repository.manifest import Format, Signature, Task, TensorSpec
from services.repository.store import Repository
from tests.inference.conftest import PLAIN, Door, plain_model, seal

LABELS = ("short", "long", "odd")
WORDS = ("[UNK]", "[PAD]", "one", "two", "three", "four", "café")
MAX_TOKENS = 12

TENSOR_OF = {  # the protocol's name to ONNX's
    "BOOL": "BOOL",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "FP16": "FLOAT16",
    "FP32": "FLOAT",
    "FP64": "DOUBLE",
}


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=(-1, *shape))


ECHO = Signature(
    task=Task.TENSOR,
    format=Format.ONNX,
    inputs=tuple(spec(f"in_{name}", name, 2) for name in DATATYPES),
    outputs=tuple(spec(f"out_{name}", name, 2) for name in DATATYPES),
)
WIDE = Signature(task=Task.TENSOR, format=Format.ONNX, inputs=(spec("x", "FP32", -1),), outputs=(spec("sum", "FP32"),))
TEXTS = Signature(
    task=Task.CLASSIFICATION,
    format=Format.ONNX,
    inputs=(spec("input_ids", "INT64", -1), spec("attention_mask", "INT64", -1)),
    outputs=(spec("logits", "FP32", len(LABELS)),),
    labels=LABELS,
    max_tokens=MAX_TOKENS,
    pad_token_id=1,
)


def _save(folder: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], constants: Sequence[Any] = ()) -> Path:
    from onnx import helper, save_model

    folder.mkdir()
    graph = helper.make_graph(list(nodes), folder.name, list(inputs), list(outputs), list(constants))
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    return folder


def _value(name: str, datatype: str, *shape: str | int) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, getattr(TensorProto, TENSOR_OF[datatype]), ["rows", *shape])


def echo_model(folder: Path) -> Path:
    """Every datatype's `out_X` is its `in_X`."""
    from onnx import helper

    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in DATATYPES]
    return _save(
        folder, nodes, [_value(f"in_{name}", name, 2) for name in DATATYPES], [_value(f"out_{name}", name, 2) for name in DATATYPES]
    )


def wide_model(folder: Path) -> Path:
    """`sum` of a row of any length."""
    from onnx import helper, numpy_helper

    node = helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=0)
    return _save(folder, [node], [_value("x", "FP32", "size")], [_value("sum", "FP32")], [numpy_helper.from_array(np.int64([1]), "axis")])


def text_model(folder: Path) -> Path:
    """`logits` = a row's count of tokens, times 1, 2 and -1, with a tokenizer of a few words."""
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["kept"]),  # so that the graph needs both
        helper.make_node("Min", ["kept", "attention_mask"], ["ones"]),
        helper.make_node("ReduceSum", ["ones", "axis"], ["count"], keepdims=1),
        helper.make_node("Cast", ["count"], ["tokens"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["tokens", "scales"], ["logits"]),
    ]
    constants = [numpy_helper.from_array(np.int64([1]), "axis"), numpy_helper.from_array(np.float32([[1, 2, -1]]), "scales")]
    inputs = [_value(name, "INT64", "tokens") for name in ("input_ids", "attention_mask")]
    _save(folder, nodes, inputs, [_value("logits", "FP32", len(LABELS))], constants)
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def logits(*token_counts: int) -> np.ndarray:
    """What the text model answers for rows of so many known tokens."""
    return np.float32([[count, 2 * count, -count] for count in token_counts])


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository with `plain` (versions 1, stable and canary, and 2), `echo`, `wide` and `texts`. Read only."""
    root = tmp_path_factory.mktemp("small")
    repository = Repository(root / "repository")
    plain = plain_model(root / "plain")
    seal(repository, plain, "plain", PLAIN, "stable")
    seal(repository, plain, "plain", PLAIN)
    repository.set_channel("plain", "canary", 1)
    seal(repository, echo_model(root / "echo"), "echo", ECHO, "stable")
    seal(repository, wide_model(root / "wide"), "wide", WIDE, "stable")
    seal(repository, text_model(root / "texts"), "texts", TEXTS, "stable")
    return repository


class Protocol:
    """Calls by the protocol's own path, with messages that a well-behaved client could not make."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def __call__(self, method: str, request: Any = None, **options: Any) -> Any:
        """`request` is a message of the method, its bytes as sent, or None for an empty one."""
        answer = getattr(pb, f"{method}Response")
        call = self._channel.unary_unary(f"/{wire.NAME}/{method}", response_deserializer=answer.FromString)
        return await call(request if isinstance(request, bytes) else request.SerializeToString() if request else b"", **options)

    def stream(self, requests: Any, **options: Any) -> Any:
        call = self._channel.stream_stream(
            f"/{wire.NAME}/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        return call(requests, **options)


@pytest.fixture
def speak() -> Callable[[Door], Protocol]:
    return lambda door: Protocol(door.channel)


def infer(model: str = "plain", /, raw: bool = True, outputs: Sequence[Any] = (), **given: Any) -> pb.ModelInferRequest:
    """A request with an input for each array among `given`; the rest are the message's own fields."""
    arrays = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
    fields = {name: value for name, value in given.items() if name not in arrays}
    request = pb.ModelInferRequest(
        model_name=model, outputs=[{"name": each} if isinstance(each, str) else each for each in outputs], **fields
    )
    for name, array in arrays.items():
        datatype = next(key for key, dtype in DATATYPES.items() if np.dtype(dtype) == array.dtype)
        entry = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            request.raw_input_contents.append(array.tobytes())
        else:
            getattr(entry.contents, CONTENTS_OF[datatype]).extend(array.ravel().tolist())
    return request


CONTENTS_OF = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def arrays_of(response: pb.ModelInferResponse) -> Mapping[str, np.ndarray]:
    """The response's outputs, from raw or typed form."""
    found = {}
    for index, output in enumerate(response.outputs):
        dtype = np.dtype(DATATYPES[output.datatype])
        if response.raw_output_contents:
            assert len(response.raw_output_contents) == len(response.outputs)
            found[output.name] = np.frombuffer(response.raw_output_contents[index], dtype).reshape(tuple(output.shape))
        else:
            found[output.name] = np.array(getattr(output.contents, CONTENTS_OF[output.datatype]), dtype).reshape(tuple(output.shape))
    return found


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value
