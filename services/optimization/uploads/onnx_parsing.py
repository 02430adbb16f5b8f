"""An uploaded ONNX file to its signature. Runs in the inspection's child process alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from services import backends
from services.optimization.failures import BadModel
from services.optimization.uploads import answer_shape, configuration
from services.optimization.uploads.configuration import read_json
from services.repository.manifest import Format, Signature, Task, TensorSpec

FILE_NAME = "model.onnx"
Specs = tuple[TensorSpec, ...]
# ONNX element types by the Open Inference Protocol's names; a type without one cannot travel.
_DATATYPES = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.STRING: "BYTES",
}
_TEXT_INPUTS = ({"input_ids", "attention_mask"}, {"input_ids", "attention_mask", "token_type_ids"})
_LOGITS = (Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.CAUSAL_LM)


def parse_onnx(folder: Path, task: Task | None) -> Signature:
    """A tokenizer beside the graph makes it a text model, `pixel_values` an image model, unless the task says otherwise.

    Raises BadModel.
    """
    graph = _checked(folder / FILE_NAME).graph
    constants = {value.name for value in graph.initializer}
    inputs = tuple(_spec(value) for value in graph.input if value.name not in constants)
    outputs = tuple(_spec(value) for value in graph.output)
    signature = _described(folder, task, inputs, outputs)
    if task is not None and signature.task is not task:
        raise BadModel(f"{FILE_NAME}: answers the task {signature.task}, not {task}")
    return signature


def _described(folder: Path, task: Task | None, inputs: Specs, outputs: Specs) -> Signature:
    if task is not Task.TENSOR and (folder / "tokenizer.json").exists():
        return _text(folder, task, inputs, outputs)
    if task is not Task.TENSOR and (_takes_image(inputs) or task is Task.IMAGE_CLASSIFICATION):
        return _image(folder, inputs, outputs)
    signature = Signature(task=Task.TENSOR, format=Format.ONNX, inputs=inputs, outputs=outputs)
    _load(folder, signature)
    return signature


def _checked(path: Path) -> Any:
    """The parsed model. The check of other files comes first: parsing must not follow them."""
    from services.backends.onnxruntime import check_file

    try:
        check_file(path)
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(model)
    except backends.LoadError as error:
        raise BadModel(str(error)) from error
    except Exception as error:  # protobuf's DecodeError, checker's ValidationError and ValueErrors
        raise BadModel(f"{path.name}: {error}") from error
    return model


def _spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    if tensor.elem_type not in _DATATYPES or not value.type.HasField("tensor_type"):
        raise BadModel(f"{FILE_NAME}: {value.name!r} is not a tensor of a type that can be sent")
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    if not shape:
        raise BadModel(f"{FILE_NAME}: {value.name!r} is a scalar or of unknown rank; its first dimension must be the rows")
    return TensorSpec(name=value.name, datatype=_DATATYPES[tensor.elem_type], shape=(-1, *shape[1:]))


def _takes_image(inputs: Specs) -> bool:
    return [spec.name for spec in inputs] == ["pixel_values"]


def _image(folder: Path, inputs: Specs, outputs: Specs) -> Signature:
    if not _takes_image(inputs) or inputs[0].datatype != "FP32" or len(inputs[0].shape) != 4:
        raise BadModel(f"{FILE_NAME}: an image model takes FP32 pixel_values [rows, channels, height, width], not {_told(inputs)}")
    if _told(outputs) != [("logits", "FP32")]:
        raise BadModel(f"{FILE_NAME}: an image model answers one FP32 matrix, `logits` [rows, labels], not {_told(outputs)}")
    task = Task.IMAGE_CLASSIFICATION
    signature = Signature(task=task, format=Format.ONNX, inputs=inputs, outputs=(answer_shape.output_spec("logits", task),))
    return answer_shape.described(signature, answer_shape.answer_to_sample(folder, signature), read_json(folder, "config.json"))


def _text(folder: Path, task: Task | None, inputs: Specs, outputs: Specs) -> Signature:
    if {spec.name for spec in inputs} not in _TEXT_INPUTS or any(spec.datatype != "INT64" for spec in inputs):
        raise BadModel(f"{FILE_NAME}: a text model takes INT64 input_ids and attention_mask, not {[spec.name for spec in inputs]}")
    if _told(outputs) not in ([("embedding", "FP32")], [("logits", "FP32")]):
        raise BadModel(
            f"{FILE_NAME}: a text model answers one FP32 tensor, `embedding` [rows, dimensions] with pooling inside or "
            f"`logits` [rows, labels] or [rows, tokens, labels], not {_told(outputs)}"
        )
    config = read_json(folder, "config.json")
    configuration.check_vocabulary(folder, config)
    signature = Signature(
        task=Task.EMBEDDING if outputs[0].name == "embedding" else Task.CLASSIFICATION,
        format=Format.ONNX,
        inputs=inputs,
        outputs=outputs,
        max_tokens=configuration.max_tokens(folder, config),
        pad_token_id=configuration.pad_token_id(folder, config),
    )
    answer = answer_shape.answer_to_sample(folder, signature)
    if signature.task is not Task.EMBEDDING:
        signature = signature.model_copy(update={"task": _task_of_logits(folder, config, task, answer.ndim)})
    return answer_shape.described(signature, answer, config)


def _task_of_logits(folder: Path, config: Mapping[str, Any], task: Task | None, dimensions: int) -> Task:
    """A matrix classifies rows; of a tensor per token the caller, or config.json, says what it means. Raises BadModel."""
    if dimensions == 2:
        return Task.CLASSIFICATION
    named = task or configuration.task(folder, config)
    if named not in _LOGITS:
        raise BadModel(f"{FILE_NAME}: `logits` per token label tokens or predict the next; name the task to choose")
    return named


def _told(specs: Specs) -> list[tuple[str, str]]:
    return [(spec.name, spec.datatype) for spec in specs]


def _load(folder: Path, signature: Signature) -> None:
    """As serving will. Raises BadModel."""
    try:
        backends.load(folder, signature, threads=1).close()
    except backends.LoadError as error:
        raise BadModel(str(error)) from error
