"""What a trial tells its service: load this version, unload that one, who are you."""

import grpc
from hone.inference.v1 import inference_pb2 as pb
from hone.inference.v1 import inference_pb2_grpc

_ASK_S = 0.5
_UNLOAD_S = 30.0
# A service that is about to listen is asked again sooner than gRPC would by itself.
_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))


class ControlFailed(Exception):
    """The service refused, or did not answer."""


class Control:
    """The calls that load and unload, one after the other."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)

    def replica(self) -> str:
        """The name of who answers at the address; "" where nobody does, for half a second."""
        try:
            return str(self._stub.ListModels(pb.ListModelsRequest(), timeout=_ASK_S, wait_for_ready=True).replica)
        except grpc.RpcError:
            return ""

    def load(self, reference: str, timeout_s: float) -> None:
        """Returns when it serves. Raises ControlFailed."""
        try:
            self._stub.LoadModel(pb.LoadModelRequest(model=reference), timeout=timeout_s)
        except grpc.RpcError as error:
            raise _failure(error) from error

    def unload(self, reference: str) -> None:
        """Raises ControlFailed."""
        try:
            self._stub.UnloadModel(pb.UnloadModelRequest(model=reference), timeout=_UNLOAD_S)
        except grpc.RpcError as error:
            raise _failure(error) from error

    def close(self) -> None:
        self._channel.close()


def _failure(error: grpc.RpcError) -> ControlFailed:
    return ControlFailed(f"{error.code().name}: {error.details()}")
