"""`python -m services.inference`: serves the versions that the repository's channels point at."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import grpc
import structlog
from hone import channel
from hone.aio import CacheClient
from hone.inference.v1 import inference_pb2_grpc

from services.chassis.server import Server, run, until_signalled
from services.chassis.settings import load
from services.inference.answers import Answers, MemoryAnswers
from services.inference.core import Core
from services.inference.departed import Departed
from services.inference.errors import ERRORS
from services.inference.host import Host
from services.inference.memory import bound_arenas
from services.inference.metrics import Metrics
from services.inference.models import Models
from services.inference.oip import wire as oip
from services.inference.oip.servicer import OpenInferenceServicer
from services.inference.served import ServedVersion
from services.inference.servicer import NAME, InferenceServicer
from services.inference.settings import InferenceSettings
from services.inference.shared_answers import SharedAnswers
from services.inference.traffic.keeper import Keeper
from services.inference.traffic.metrics import TrafficCollector
from services.inference.traffic.shadow import Shadows
from services.repository.store import Repository

log = structlog.get_logger("hone.inference")


async def main(settings: InferenceSettings) -> None:
    async with AsyncExitStack() as stack:
        server = Server(settings, ERRORS)
        metrics = Metrics(server.registry)
        answers = await stack.enter_async_context(_answers(settings, server, metrics))
        repository = Repository(settings.repository)
        departed = Departed(repository, answers.clear)

        def gone(served: ServedVersion) -> None:
            answers.drop(served.namespace)
            departed.add(served)

        models = Models(repository, settings, metrics, gone=gone)
        stack.push_async_callback(models.close)
        shadows = await stack.enter_async_context(_splitting(models, settings, server))
        core = Core(models, answers, settings.max_rows, shadows)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceServicer(core, models, settings.replica), server.grpc)
        door = OpenInferenceServicer(core, models, settings, lambda: server.is_ready(NAME))
        oip.add_to_server(door, server.grpc)
        server.reflected = oip.reflected()
        server.before_drain.append(door.end_streams)
        await stack.enter_async_context(server.running([NAME, oip.NAME]))
        await stack.enter_async_context(_following(models, departed, server))
        await _until_signalled_or_given_up(models.host)
    if models.host.given_up.is_set():
        log.error("too many threads hang in this process; ending it, so that whoever supervises it starts another")
        raise SystemExit(1)


async def _until_signalled_or_given_up(host: Host) -> None:
    ends = [asyncio.ensure_future(until_signalled()), asyncio.ensure_future(host.given_up.wait())]
    _, pending = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.wait(ends)  # the handlers of signals are taken back


@asynccontextmanager
async def _answers(settings: InferenceSettings, server: Server, metrics: Metrics) -> AsyncIterator[Answers]:
    async with AsyncExitStack() as stack:
        shared = None
        if settings.cache:
            connection = grpc.aio.insecure_channel(settings.cache, channel.options(retries=False), interceptors=server.client_interceptors)
            client = CacheClient(settings.cache, connection=await stack.enter_async_context(connection))
            shared = SharedAnswers(client, timeout_s=settings.cache_timeout_s, ttl_s=settings.answers_ttl_s, lease_s=settings.cache_lease_s)
        memory = MemoryAnswers(settings.answers_bytes) if settings.answers_bytes else None
        answers = Answers(memory, shared, switched=metrics.lookups_switched)
        stack.push_async_callback(answers.close)
        yield answers


@asynccontextmanager
async def _splitting(models: Models, settings: InferenceSettings, server: Server) -> AsyncIterator[Shadows]:
    """Copies calls for shadows, keeps what splits count and judges their arms; saves the last counts at the end."""
    server.registry.register(TrafficCollector(models.splits))
    shadows, keeper = Shadows(models, settings.shadow_calls), Keeper(models.splits, models.state, settings.traffic_s)
    task = asyncio.get_running_loop().create_task(keeper.follow())
    try:
        yield shadows
    finally:
        await shadows.close()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await keeper.close()


@asynccontextmanager
async def _following(models: Models, departed: Departed, server: Server) -> AsyncIterator[None]:
    """Ready once what the channels point at is loaded, or has failed to."""

    async def follow() -> None:
        await models.begin()
        # The libraries' objects stay for good: looking through them again and again took a twentieth of the loop's time.
        gc.collect()
        gc.freeze()
        async with asyncio.TaskGroup() as group:
            group.create_task(models.follow())
            group.create_task(departed.follow())
            group.create_task(_tell_readiness(models, server))

    task = asyncio.get_running_loop().create_task(follow())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _tell_readiness(models: Models, server: Server) -> None:
    """Not ready while a version that a channel leads to has no instance: callers are to go to another replica."""
    while True:
        models.host.changed.clear()
        if lost := models.lost():
            log.warning("not ready: versions without an instance", models=lost)
        for name in (NAME, oip.NAME):
            await server.set_ready(name, not lost)
        await models.host.changed.wait()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its own thread pool would take the instances' cores
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # versions are whole; nothing is fetched while serving
    settings = load(InferenceSettings)
    bound_arenas(max(2, len(settings.cores)))
    run(main(settings), settings)
