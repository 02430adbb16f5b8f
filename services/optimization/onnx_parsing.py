"""An uploaded ONNX file to its signature. Runs in the inspection's child process alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from services import backends
from services.backends.text import pad
from services.optimization import configuration
from services.optimization.configuration import read_json
from services.optimization.failures import BadModel
from services.repository.manifest import Format, Signature, Task, TensorSpec

FILE_NAME = "model.onnx"
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
_TEXT_OUTPUTS = {"embedding": Task.EMBEDDING, "logits": Task.CLASSIFICATION}
_TEXT_INPUTS = ({"input_ids", "attention_mask"}, {"input_ids", "attention_mask", "token_type_ids"})


def parse_onnx(folder: Path, task: Task | None) -> Signature:
    """A tokenizer beside the graph makes it a text model, unless the task says otherwise. Raises BadModel."""
    graph = _checked(folder / FILE_NAME).graph
    constants = {value.name for value in graph.initializer}
    inputs = tuple(_spec(value) for value in graph.input if value.name not in constants)
    outputs = tuple(_spec(value) for value in graph.output)
    is_text = (folder / "tokenizer.json").exists() and task is not Task.TENSOR
    signature = _text(folder, inputs, outputs) if is_text else _tensors(inputs, outputs)
    if task is not None and signature.task is not task:
        raise BadModel(f"{FILE_NAME}: answers the task {signature.task}, not {task}")
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


def _tensors(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Signature:
    return Signature(task=Task.TENSOR, format=Format.ONNX, inputs=inputs, outputs=outputs)


def _text(folder: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Signature:
    if {spec.name for spec in inputs} not in _TEXT_INPUTS or any(spec.datatype != "INT64" for spec in inputs):
        raise BadModel(f"{FILE_NAME}: a text model takes INT64 input_ids and attention_mask, not {[spec.name for spec in inputs]}")
    if len(outputs) != 1 or outputs[0].name not in _TEXT_OUTPUTS or outputs[0].datatype != "FP32":
        raise BadModel(
            f"{FILE_NAME}: a text model answers one FP32 matrix, `embedding` [rows, dimensions] with pooling inside or "
            f"`logits` [rows, labels], not {[(spec.name, spec.datatype) for spec in outputs]}"
        )
    config = read_json(folder, "config.json")
    configuration.check_vocabulary(folder, config)
    signature = Signature(
        task=_TEXT_OUTPUTS[outputs[0].name],
        format=Format.ONNX,
        inputs=inputs,
        outputs=outputs,
        max_tokens=configuration.max_tokens(folder, config),
        pad_token_id=configuration.pad_token_id(folder, config),
    )
    return _with_width(folder, signature, config)


def _with_width(folder: Path, signature: Signature, config: Mapping[str, Any]) -> Signature:
    """Graphs seldom declare how wide their answer is: two short rows tell."""
    rows = [np.full(3, signature.pad_token_id), np.full(2, signature.pad_token_id)]
    output = signature.outputs[0].name
    try:
        model = backends.load(folder, signature, threads=1)
        found = model.run(pad(rows, signature), [output])[output]
    except backends.BackendError as error:
        raise BadModel(f"{FILE_NAME}: {error}") from error
    if found.ndim != 2 or len(found) != len(rows):
        raise BadModel(f"{FILE_NAME}: `{output}` has the shape {list(found.shape)} for {len(rows)} rows; one vector per row is needed")
    width = found.shape[1]
    names = configuration.labels(config, width) if signature.task is Task.CLASSIFICATION else ()
    spec = TensorSpec(name=output, datatype="FP32", shape=(-1, width))
    return signature.model_copy(update={"outputs": (spec,), "labels": names})


def _load(folder: Path, signature: Signature) -> None:
    """As serving will. Raises BadModel."""
    try:
        backends.load(folder, signature, threads=1).close()
    except backends.LoadError as error:
        raise BadModel(str(error)) from error
