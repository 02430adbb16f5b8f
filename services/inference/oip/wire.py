"""The protocol's own path and names for messages that live in our package.

gRPC sends no message names, so equal field numbers are enough for its clients; the names matter to reflection alone.
"""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import text_format
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from hone.oip.v1 import open_inference_pb2

_OURS, _THEIRS = open_inference_pb2.DESCRIPTOR.package, "inference"
_OUR_FOLDER = _OURS.replace(".", "/")
_SERVICE = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
NAME = f"{_THEIRS}.{_SERVICE.name}"


def add_to_server(servicer: object, server: grpc.aio.Server) -> None:
    """Serves each method of the contract by the servicer's of the same name."""
    methods = {method.name: _handler(method, getattr(servicer, method.name)) for method in _SERVICE.methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, methods),))


def reflected() -> DescriptorPool:
    """What reflection looks names up in: the process's descriptors, and the contract once more under the protocol's names.

    A pool of its own: where a client of the protocol is imported into this process, the default one has these names already.
    """
    return DescriptorPool(_Names())


def _handler(method: MethodDescriptor, behaviour: Callable[..., Any]) -> "grpc.RpcMethodHandler[Any, Any]":
    make = grpc.stream_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    return make(behaviour, GetMessageClass(method.input_type).FromString, GetMessageClass(method.output_type).SerializeToString)


class _Names:
    """A descriptor database, with protobuf's names of its methods; both raise KeyError."""

    def FindFileByName(self, name: str) -> FileDescriptorProto:  # noqa: N802
        folder, _, rest = name.partition("/")
        if folder == _THEIRS:
            return _renamed(Default().FindFileByName(f"{_OUR_FOLDER}/{rest}"))
        return _proto(Default().FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptorProto:  # noqa: N802
        package, _, rest = symbol.partition(".")
        if package == _THEIRS:
            return _renamed(Default().FindFileContainingSymbol(f"{_OURS}.{rest}"))
        return _proto(Default().FindFileContainingSymbol(symbol))


def _proto(file: FileDescriptor) -> FileDescriptorProto:
    made = FileDescriptorProto()
    file.CopyToProto(made)
    return made


def _renamed(file: FileDescriptor) -> FileDescriptorProto:
    """The file as if it had been written in the protocol's package: its path, its package and every type that it names."""
    text = text_format.MessageToString(_proto(file))
    return text_format.Parse(text.replace(_OURS, _THEIRS).replace(_OUR_FOLDER, _THEIRS), FileDescriptorProto())
