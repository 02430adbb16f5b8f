"""Between the models' contract and our manifests."""

from collections.abc import Mapping, Sequence
from functools import partial

from hone.repository.v1 import models_pb2

from services.chassis.faults import InvalidField
from services.optimization import conversion
from services.repository.manifest import FileEntry, Format, Manifest, Task, TensorSpec

_TASKS = {
    Task.EMBEDDING: models_pb2.TASK_EMBEDDING,
    Task.CLASSIFICATION: models_pb2.TASK_CLASSIFICATION,
    Task.TENSOR: models_pb2.TASK_TENSOR,
    Task.TOKEN_CLASSIFICATION: models_pb2.TASK_TOKEN_CLASSIFICATION,
    Task.IMAGE_CLASSIFICATION: models_pb2.TASK_IMAGE_CLASSIFICATION,
    Task.CAUSAL_LM: models_pb2.TASK_CAUSAL_LM,
}
_FORMATS = {
    Format.HUGGINGFACE: models_pb2.FORMAT_HUGGINGFACE,
    Format.ONNX: models_pb2.FORMAT_ONNX,
    Format.TORCHSCRIPT: models_pb2.FORMAT_TORCHSCRIPT,
    Format.AOTINDUCTOR: models_pb2.FORMAT_AOTINDUCTOR,
    Format.OPENVINO: models_pb2.FORMAT_OPENVINO,
}


def task_from(value: "models_pb2.Task.ValueType") -> Task | None:
    """None for UNSPECIFIED. Raises InvalidField."""
    if value == models_pb2.TASK_UNSPECIFIED:
        return None
    found = next((task for task, number in _TASKS.items() if number == value), None)
    if found is None:
        raise InvalidField("header.task", f"{value} is not a task")
    return found


def files_from(messages: Sequence[models_pb2.File]) -> list[FileEntry]:
    """Raises InvalidField."""
    return [
        conversion.checked(f"header.files[{index}]", partial(FileEntry, path=file.path, size_bytes=file.size_bytes, sha256=file.sha256))
        for index, file in enumerate(messages)
    ]


def model_message(manifest: Manifest, channels: Mapping[str, int]) -> models_pb2.ModelVersion:
    signature = manifest.signature
    return models_pb2.ModelVersion(
        name=manifest.name,
        version=manifest.version,
        task=_TASKS[signature.task],
        format=_FORMATS[signature.format],
        digest=manifest.digest,
        size_bytes=manifest.size_bytes,
        files=[models_pb2.File(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256) for file in manifest.files],
        inputs=[_tensor_spec(spec) for spec in signature.inputs],
        outputs=[_tensor_spec(spec) for spec in signature.outputs],
        labels=signature.labels,
        max_tokens=signature.max_tokens,
        created=conversion.timestamp(manifest.created),
        parent=manifest.parent,
        recipe=conversion.struct(manifest.recipe),
        report=conversion.struct(manifest.report),
        channels=[channel for channel, version in channels.items() if version == manifest.version],
    )


def _tensor_spec(spec: TensorSpec) -> models_pb2.TensorSpec:
    return models_pb2.TensorSpec(name=spec.name, datatype=spec.datatype, shape=spec.shape)
