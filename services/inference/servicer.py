"""Our own door: converts between the wire and the core, and touches no tensor's content."""

import math
import resource
import time
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from hone.inference.v1 import inference_pb2 as pb
from hone.inference.v1 import inference_pb2_grpc

from services.backends import Array
from services.backends.datatypes import DATATYPES, datatype_of
from services.chassis.faults import InvalidField
from services.inference.answers import Ledger
from services.inference.batching import MAX_PRIORITY
from services.inference.calls import Options, Result
from services.inference.core import Core
from services.inference.memory import resident_bytes
from services.inference.models import Models
from services.inference.served import ServedVersion, State
from services.inference.statistics_wire import lookups, variants
from services.inference.traffic import wire as traffic_wire
from services.repository.manifest import Task

NAME = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
MAX_DIMENSIONS = 16  # far more than a model has, and fewer than numpy refuses
Context = grpc.aio.ServicerContext[object, object]


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """`replica` names this process in answers."""

    def __init__(self, core: Core, models: Models, replica: str) -> None:
        self._core = core
        self._models = models
        self._replica = replica

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        result = await self._core.run_texts(request.model, Task.EMBEDDING, request.texts, _options(request.options, context))
        (vectors,) = result.outputs.values()
        return pb.EmbedResponse(embeddings=_tensor(vectors), served=self._served(result))

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        if request.top_k < 0:
            raise InvalidField("top_k", f"must be 0 or more, not {request.top_k}")
        result = await self._core.run_texts(request.model, Task.CLASSIFICATION, request.texts, _options(request.options, context))
        (logits,) = result.outputs.values()
        return pb.ClassifyResponse(classifications=_classify(logits, result.labels, request.top_k), served=self._served(result))

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        inputs = _arrays(request.inputs)
        result = await self._core.run_tensors(request.model, inputs, request.outputs, _options(request.options, context))
        outputs = [pb.NamedTensor(name=name, tensor=_tensor(array)) for name, array in result.outputs.items()]
        return pb.PredictResponse(outputs=outputs, served=self._served(result))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._model(served) for served in self._models.all()], replica=self._replica)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        return pb.LoadModelResponse(model=self._model(await self._models.load(request.model)))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        self._models.unload(request.model)
        return pb.UnloadModelResponse()

    async def GetStatistics(self, request: pb.GetStatisticsRequest, context: Context) -> pb.GetStatisticsResponse:
        chosen = [self._models.find(request.model)[0]] if request.model else self._models.all()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        statistics = [_statistics(served, self._core.ledger(served)) for served in chosen if served.engine is not None]
        return pb.GetStatisticsResponse(
            models=statistics,
            replica=self._replica,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            models_bytes=self._models.residents.bytes,
            models_limit_bytes=self._models.residents.limit_bytes,
            resident_bytes=resident_bytes(),
        )

    async def RecordOutcome(self, request: pb.RecordOutcomeRequest, context: Context) -> pb.RecordOutcomeResponse:
        live = traffic_wire.live_split(self._models.splits, request.model, request.channel)
        return pb.RecordOutcomeResponse(counted=traffic_wire.record(live, request))

    async def GetExperiment(self, request: pb.GetExperimentRequest, context: Context) -> pb.GetExperimentResponse:
        return traffic_wire.experiment_message(self._models.splits, request)

    def _served(self, result: Result) -> pb.Served:
        served = result.served
        return pb.Served(
            model=served.model,
            version=served.version,
            variant=served.variant,
            cached_rows=served.cached_rows,
            tokens=served.tokens,
            batch_rows=served.batch_rows,
            queue_ns=served.queue_ns,
            tokenization_ns=served.tokenization_ns,
            compute_ns=served.compute_ns,
            replica=self._replica,
            channel=served.channel,
            revision=served.revision,
        )

    def _model(self, served: ServedVersion) -> pb.LoadedModel:
        return pb.LoadedModel(
            name=served.manifest.name,
            version=served.manifest.version,
            state=pb.LoadState.Value(f"LOAD_STATE_{served.state}"),
            reason=served.trouble,
            channels=self._models.channels_of(served),
            backend=served.backend,
            size_bytes=served.manifest.size_bytes,
            resident_bytes=served.resident_bytes,
            idle_seconds=time.monotonic() - served.last_used if served.state is State.READY else 0,
            pinned=self._models.residents.is_pinned(served),
            arms=traffic_wire.served_arms(self._models.splits, served.manifest.name, served.manifest.version),
        )


def _options(options: pb.CallOptions, context: Context) -> Options:
    if not 0 <= options.priority <= MAX_PRIORITY:
        raise InvalidField("options.priority", f"must be 0 to {MAX_PRIORITY}, not {options.priority}")
    remaining = context.time_remaining()
    deadline = time.monotonic() + remaining if remaining is not None else math.inf
    return Options(options.truncate, options.bypass_cache, options.priority, deadline, options.sticky_key)


def _arrays(inputs: Sequence[pb.NamedTensor]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for index, entry in enumerate(inputs):
        if entry.name in arrays:
            raise InvalidField(f"inputs[{index}].name", f"{entry.name!r} is named twice")
        arrays[entry.name] = _array(f"inputs[{entry.name}].tensor", entry.tensor)
    return arrays


def _array(field: str, tensor: pb.Tensor) -> Array:
    """The tensor's bytes as an array, without a copy; it cannot be written to."""
    if tensor.datatype not in DATATYPES:
        raise InvalidField(f"{field}.datatype", f"{tensor.datatype!r} is not among {', '.join(DATATYPES)}")
    if not 0 < len(tensor.shape) <= MAX_DIMENSIONS or min(tensor.shape) < 1:
        raise InvalidField(f"{field}.shape", f"{list(tensor.shape[:8])} must be 1 to {MAX_DIMENSIONS} sizes of 1 or more, the rows first")
    dtype = np.dtype(DATATYPES[tensor.datatype])
    expected = math.prod(tensor.shape) * dtype.itemsize
    if len(tensor.data) != expected:
        raise InvalidField(f"{field}.data", f"has {len(tensor.data)} bytes, shape and datatype make {expected}")
    return np.frombuffer(tensor.data, dtype).reshape(tuple(tensor.shape))


def _tensor(array: Array) -> pb.Tensor:
    return pb.Tensor(datatype=datatype_of(array), shape=array.shape, data=np.ascontiguousarray(array).tobytes())


def _classify(logits: Array, labels: Sequence[str], top_k: int) -> list[pb.Classification]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = shifted / shifted.sum(axis=1, keepdims=True)
    best = np.argsort(-scores, axis=1, kind="stable")[:, : top_k or None]
    return [
        pb.Classification(labels=[pb.ScoredLabel(label=labels[index], score=row[index]) for index in order])
        for row, order in zip(scores, best, strict=True)
    ]


def _statistics(served: ServedVersion, ledger: Ledger) -> pb.ModelStatistics:
    assert served.engine is not None  # noqa: S101 (the caller chose those that have one)
    counted = served.engine.statistics
    loaded = Timestamp()
    loaded.FromDatetime(counted.loaded)
    fields: Mapping[str, int] = {name: getattr(counted, name) for name in counted.__slots__ if name != "loaded"}
    return pb.ModelStatistics(
        name=served.manifest.name,
        version=served.manifest.version,
        loaded=loaded,
        queued_rows=served.engine.queued_rows,
        variants=variants(served.engine.variants),
        lookups=lookups(ledger),
        **fields,
    )
