# ruff: noqa: N802  # methods are named as the contract names its RPCs
"""A hand-written replica that speaks the inference contract: says its name, can be stuck, and turns NOT_SERVING when told.

SIGUSR1 turns the service NOT_SERVING, SIGUSR2 SERVING again; both leave it answering, so that only health can tell.
"""

import asyncio
import platform
import signal
from typing import Any

from hone.inference.v1 import inference_pb2 as pb
from hone.inference.v1 import inference_pb2_grpc as stubs

from services.chassis.errors import ErrorTable
from services.chassis.server import Server, run, until_signalled
from services.chassis.settings import ServerSettings

SERVICE = "hone.inference.v1.InferenceService"
REPLICA = platform.node()
DRAIN_S = 5  # longer than the gateway takes to see that health has turned


class Replica(stubs.InferenceServiceServicer):
    """Embed answers at once, or never for the model `stuck`; Predict echoes; GetStatistics counts dropped calls."""

    def __init__(self) -> None:
        self._dropped = 0

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        if request.model == "stuck":
            try:
                await asyncio.Event().wait()
            finally:
                self._dropped += 1
        return pb.EmbedResponse(served=pb.Served(replica=REPLICA))

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        return pb.PredictResponse(outputs=request.inputs, served=pb.Served(replica=REPLICA))

    async def GetStatistics(self, request: pb.GetStatisticsRequest, context: Any) -> pb.GetStatisticsResponse:
        return pb.GetStatisticsResponse(models=[pb.ModelStatistics(dropped_rows=self._dropped)], replica=REPLICA)


async def follow_signals(server: Server) -> None:
    told: asyncio.Queue[bool] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, told.put_nowait, False)
    loop.add_signal_handler(signal.SIGUSR2, told.put_nowait, True)
    told.put_nowait(True)
    while True:
        await server.set_ready(SERVICE, await told.get())


async def main(settings: ServerSettings) -> None:
    server = Server(settings, ErrorTable())
    stubs.add_InferenceServiceServicer_to_server(Replica(), server.grpc)
    async with server.running([SERVICE]):
        following = asyncio.create_task(follow_signals(server))
        await until_signalled()
        following.cancel()
        await server.set_ready(SERVICE, False)
        await asyncio.sleep(DRAIN_S)  # a call that arrives while gRPC's server is closing is cancelled: nobody may send one by then


if __name__ == "__main__":
    settings = ServerSettings(host="0.0.0.0", port=7002)
    run(main(settings), settings)
