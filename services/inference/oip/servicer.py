"""The Open Inference Protocol's methods, each a few lines onto the core."""

import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from importlib.metadata import version

import grpc
import structlog
from hone.oip.v1 import open_inference_pb2 as pb

from services.chassis.faults import DeadlineMissed, InvalidField, NotFound, Overloaded, Unavailable, WrongState
from services.inference.calls import Options
from services.inference.core import Core
from services.inference.errors import ERRORS
from services.inference.models import Models, Unloaded
from services.inference.oip.answer_wire import write_answer
from services.inference.oip.faults import NotOffered
from services.inference.oip.metadata_wire import metadata, model_config
from services.inference.oip.request_wire import TEXT, Call, read_call, reference_of
from services.inference.oip.statistics_wire import statistics
from services.inference.oip.stream import Stream
from services.inference.served import ServedVersion, State
from services.inference.settings import InferenceSettings
from services.repository.store import UnknownModel

log = structlog.get_logger("hone.oip")
Context = grpc.aio.ServicerContext[object, object]

# What works, and nothing else: perf_analyzer, for one, believes it.
EXTENSIONS = ("classification", "model_configuration", "model_repository", "parameters", "schedule_policy", "statistics")
_STATES = {  # as Triton words them
    State.LOADING: "LOADING",
    State.READY: "READY",
    State.UNLOADED: "READY",  # it comes back for the call that asks for it
    State.DRAINING: "UNLOADING",
    State.FAILED: "UNAVAILABLE",
}
_REAL_STATUS = ("triton_grpc_error", "true")
STREAM_AHEAD = 128  # requests of one stream under way at once; the queue's own bounds are for all callers


class OpenInferenceServicer:
    """`ready` tells whether the service can do its work."""

    def __init__(self, core: Core, models: Models, settings: InferenceSettings, ready: Callable[[], bool]) -> None:
        self._core = core
        self._models = models
        self._settings = settings
        self._ready = ready
        self._streams: set[Stream[pb.ModelInferRequest, pb.ModelStreamInferResponse]] = set()

    def end_streams(self) -> None:
        """Streams take no further request, and end once those taken are answered."""
        for stream in self._streams:
            stream.stop()

    # Inference

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        return await self._infer(request, _deadline(context))

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        in_band = _REAL_STATUS not in (context.invocation_metadata() or ())
        deadline = _deadline(context)

        async def answer(request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
            try:
                response = await self._infer(request, deadline)
            except Exception as error:
                if not in_band:
                    raise
                return _told(request, error)
            response.parameters["triton_final_response"].bool_param = True
            return pb.ModelStreamInferResponse(infer_response=response)

        stream = Stream(requests, answer, ahead=STREAM_AHEAD, idle_s=self._settings.oip_stream_idle_s)
        self._streams.add(stream)
        try:
            async with aclosing(stream.answers()) as responses:
                async for response in responses:
                    yield response
        finally:
            self._streams.discard(stream)
        if stream.stopped:
            raise Unavailable("the server is stopping")

    async def _infer(self, request: pb.ModelInferRequest, deadline: float) -> pb.ModelInferResponse:
        call = read_call(request)
        given = call.parameters
        options = Options(
            given.truncate,
            given.bypass_cache,
            given.priority,
            min(deadline, time.monotonic() + given.timeout_s),
            given.sticky_key,
        )
        with self._as_sent(call):
            if call.texts is not None:
                result = await self._core.run_texts(call.reference, None, call.texts, options, call.outputs)
            else:
                result = await self._core.run_tensors(call.reference, call.inputs, call.outputs, options)
        return write_answer(request, call, result, self._settings.replica)

    @contextmanager
    def _as_sent(self, call: Call) -> Iterator[None]:
        """The core's faults in the words of the request as it was sent, and with Triton's codes where the operator wants them."""
        try:
            yield
        except InvalidField as error:
            raise _in_protocol(error) from None
        except WrongState:
            if call.texts is not None and not self._takes_text(call.reference):
                raise InvalidField(f"inputs[{TEXT}].name", "is not among the model's inputs") from None
            raise
        except (Overloaded, DeadlineMissed) as error:
            if not self._settings.oip_triton_codes:
                raise
            raise Unavailable(str(error), error.retry_after_s if isinstance(error, Overloaded) else None) from None

    def _takes_text(self, reference: str) -> bool:
        try:
            return self._models.find(reference)[0].signature.task.takes_text
        except (Unavailable, WrongState):
            return True  # it is not served at all: that is what the caller is told

    # Health and metadata

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        try:
            self._models.find(reference_of(request.name, request.version))
        except Unloaded:  # comes back for the call that asks for it
            return pb.ModelReadyResponse(ready=True)
        except (NotFound, UnknownModel, Unavailable, WrongState):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="hone", version=version("hone"), extensions=EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        served = await self._find(request.name, request.version, context)
        versions = [served.manifest.version]
        if request.name == served.manifest.name and not request.version:
            versions = [other.manifest.version for other in self._loaded(request.name, "")]
        return metadata(request.name, versions, served)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        served = await self._find(request.name, request.version, context)
        return pb.ModelConfigResponse(config=model_config(request.name, served, self._settings))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        loaded = self._loaded(request.name, request.version)
        return pb.ModelStatisticsResponse(model_stats=[statistics(request.name or served.manifest.name, served) for served in loaded])

    async def _find(self, name: str, version: str, context: Context) -> ServedVersion:
        return (await self._models.ready(reference_of(name, version), _deadline(context)))[0]

    def _loaded(self, name: str, version: str) -> list[ServedVersion]:
        """Versions in memory: of all models, of one, or the one that is meant. Raises what Models.find does where there is none."""
        reference = reference_of(name, version)
        if version or ":" in name or "@" in name:
            return [self._models.find(reference)[0]]
        found = [served for served in self._models.all() if served.engine is not None and name in ("", served.manifest.name)]
        return found if found or not name else [self._models.find(reference)[0]]

    # The repository

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        _one_repository(request.repository_name)
        models = [_indexed(served) for served in self._models.all()]
        return pb.RepositoryIndexResponse(models=[model for model in models if model.state == "READY" or not request.ready])

    async def RepositoryModelLoad(self, request: pb.RepositoryModelLoadRequest, context: Context) -> pb.RepositoryModelLoadResponse:
        _one_repository(request.repository_name)
        if request.parameters:
            raise NotOffered(f"parameters[{min(request.parameters)}]: a version is immutable; publish another one with what should change")
        await self._models.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: pb.RepositoryModelUnloadRequest, context: Context) -> pb.RepositoryModelUnloadResponse:
        _one_repository(request.repository_name)
        self._models.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    # Not offered

    async def SystemSharedMemoryStatus(self, request: object, context: Context) -> None:
        raise NotOffered(_NO_SHARED_MEMORY)

    SystemSharedMemoryRegister = SystemSharedMemoryUnregister = SystemSharedMemoryStatus
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = SystemSharedMemoryStatus

    async def TraceSetting(self, request: object, context: Context) -> None:
        raise NotOffered("trace settings are not offered over the protocol: traces are the operator's to switch on")

    async def LogSettings(self, request: object, context: Context) -> None:
        raise NotOffered("log settings are not offered over the protocol: the log is the operator's to set")


_NO_SHARED_MEMORY = "shared memory is not offered: tensors travel in the request and in the answer"


def _deadline(context: Context) -> float:
    """On the monotonic clock."""
    remaining = context.time_remaining()
    return time.monotonic() + remaining if remaining is not None else math.inf


def _in_protocol(error: InvalidField) -> InvalidField:
    """The core names fields as our own contract does."""
    reason = str(error).removeprefix(f"{error.field}: ").replace("options.truncate", "parameters[hone_truncate]")
    field = error.field.removesuffix(".tensor.data").replace(".tensor.", ".")
    if field.startswith("texts"):
        field = f"inputs[{TEXT}]{field.removeprefix('texts')}"
    elif field.startswith("outputs["):
        field = f"{field}.name"
    return InvalidField(field, reason)


def _told(request: pb.ModelInferRequest, error: Exception) -> pb.ModelStreamInferResponse:
    """A failure as a message of the stream: the same text that the status of a call alone would have."""
    status = ERRORS.status(error)
    if status.error_id:
        log.error("request of a stream failed", error_id=status.error_id, exc_info=error)
    response = pb.ModelStreamInferResponse(error_message=status.details, infer_response=pb.ModelInferResponse(id=request.id))
    response.infer_response.parameters["hone_status"].string_param = status.code.name
    return response


def _one_repository(name: str) -> None:
    if name:
        raise NotOffered("repository_name: there is one repository; leave the name empty")


def _indexed(served: ServedVersion) -> pb.RepositoryIndexResponse.ModelIndex:
    state = _STATES.get(served.state, "UNAVAILABLE")
    return pb.RepositoryIndexResponse.ModelIndex(
        name=served.manifest.name, version=str(served.manifest.version), state=state, reason=served.reason
    )
