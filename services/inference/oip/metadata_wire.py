"""What a model takes and answers, as the protocol's metadata and as Triton's model configuration."""

import json
from collections.abc import Sequence

from hone.oip.v1 import model_config_pb2
from hone.oip.v1 import open_inference_pb2 as pb

from services.inference.oip.parameters import PRIORITY_LEVELS
from services.inference.oip.request_wire import TEXT
from services.inference.oip.tensors import BYTES
from services.inference.served import ServedVersion
from services.inference.settings import InferenceSettings
from services.repository.manifest import Signature, TensorSpec

_TEXT_SPEC = TensorSpec(name=TEXT, datatype=BYTES, shape=(-1, 1))
_Kind = model_config_pb2.ModelInstanceGroup.Kind


def metadata(name: str, versions: Sequence[int], served: ServedVersion) -> pb.ModelMetadataResponse:
    """`name` as it was asked for, so that who asks next with what stands here asks for the same."""
    return pb.ModelMetadataResponse(
        name=name,
        versions=[str(version) for version in versions],
        platform=_platform(served),
        inputs=[_tensor(spec) for spec in _inputs(served.signature)],
        outputs=[_tensor(spec) for spec in served.signature.outputs],
        properties=_properties(served.signature),
    )


def model_config(name: str, served: ServedVersion, settings: InferenceSettings) -> model_config_pb2.ModelConfig:
    """The configuration that Triton would need to behave as this server does."""
    signature = served.signature
    return model_config_pb2.ModelConfig(
        name=name,
        platform=_platform(served),
        backend=served.backend_name,
        version_policy=model_config_pb2.ModelVersionPolicy(
            specific=model_config_pb2.ModelVersionPolicy.Specific(versions=[served.manifest.version])
        ),
        max_batch_size=settings.max_rows,
        input=[_input(spec, signature) for spec in _inputs(signature)],
        output=[
            model_config_pb2.ModelOutput(name=spec.name, data_type=_data_type(spec), dims=spec.shape[1:]) for spec in signature.outputs
        ],
        instance_group=[
            model_config_pb2.ModelInstanceGroup(name=f"{name}_0", count=_instances(served), kind=_Kind.KIND_CPU),
        ],
        dynamic_batching=_dynamic_batching(settings),
        parameters={key: model_config_pb2.ModelParameter(string_value=value) for key, value in _properties(signature).items()},
        model_transaction_policy=model_config_pb2.ModelTransactionPolicy(decoupled=False),
        response_cache=model_config_pb2.ModelResponseCache(enable=served.remembers and bool(settings.answers_bytes or settings.cache)),
    )


def _instances(served: ServedVersion) -> int:
    return served.engine.live_instances if served.engine is not None else 0


def _dynamic_batching(settings: InferenceSettings) -> model_config_pb2.ModelDynamicBatching:
    return model_config_pb2.ModelDynamicBatching(
        priority_levels=PRIORITY_LEVELS,
        default_priority_level=PRIORITY_LEVELS,
        default_queue_policy=model_config_pb2.ModelQueuePolicy(
            timeout_action=model_config_pb2.ModelQueuePolicy.REJECT, allow_timeout_override=True, max_queue_size=settings.queue_rows
        ),
    )


def _inputs(signature: Signature) -> list[TensorSpec]:
    """The model's own, and `text` where the server tokenizes."""
    return [*signature.inputs, _TEXT_SPEC] if signature.task.takes_text else list(signature.inputs)


def _input(spec: TensorSpec, signature: Signature) -> model_config_pb2.ModelInput:
    text = signature.task.takes_text
    return model_config_pb2.ModelInput(
        name=spec.name,
        data_type=_data_type(spec),
        dims=spec.shape[1:],
        optional=text,  # a request brings token ids or `text`; perf_analyzer sends what is not optional, whatever its file holds
        allow_ragged_batch=text,
    )


def _tensor(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def _data_type(spec: TensorSpec) -> "model_config_pb2.DataType.ValueType":
    return model_config_pb2.DataType.Value("TYPE_STRING" if spec.datatype == BYTES else f"TYPE_{spec.datatype}")


def _platform(served: ServedVersion) -> str:
    return f"{served.backend_name}_{served.signature.format}"


def _properties(signature: Signature) -> dict[str, str]:
    found = {"task": str(signature.task)}
    if signature.max_tokens:
        found["max_tokens"] = str(signature.max_tokens)
    if signature.labels:
        found["labels"] = json.dumps(signature.labels, ensure_ascii=False)
    return found
