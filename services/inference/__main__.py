"""`python -m services.inference`: serves the versions that the repository's channels point at."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from hone.aio import CacheClient
from hone.inference.v1 import inference_pb2_grpc

from services.chassis.server import Server, run, until_signalled
from services.chassis.settings import load
from services.inference.answers import Answers, MemoryAnswers, SharedAnswers
from services.inference.core import Core
from services.inference.errors import ERRORS
from services.inference.metrics import Metrics
from services.inference.models import Models
from services.inference.servicer import NAME, InferenceServicer
from services.inference.settings import InferenceSettings
from services.repository.store import Repository


async def main(settings: InferenceSettings) -> None:
    async with AsyncExitStack() as stack:
        server = Server(settings, ERRORS)
        answers = await stack.enter_async_context(_answers(settings))
        models = Models(Repository(settings.repository), settings, Metrics(server.registry))
        stack.push_async_callback(models.close)
        core = Core(models, answers, settings.max_rows)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceServicer(core, models, settings.replica), server.grpc)
        await stack.enter_async_context(server.running([NAME]))
        await stack.enter_async_context(_following(models, server))
        await until_signalled()


@asynccontextmanager
async def _answers(settings: InferenceSettings) -> AsyncIterator[Answers]:
    async with AsyncExitStack() as stack:
        shared = None
        if settings.cache:
            client = await stack.enter_async_context(CacheClient(settings.cache))
            shared = SharedAnswers(client, timeout_s=settings.cache_timeout_s, ttl_s=settings.answers_ttl_s)
        answers = Answers(MemoryAnswers(settings.answers_bytes) if settings.answers_bytes else None, shared)
        stack.push_async_callback(answers.close)
        yield answers


@asynccontextmanager
async def _following(models: Models, server: Server) -> AsyncIterator[None]:
    """Ready once what the channels point at is loaded, or has failed to."""

    async def follow() -> None:
        await models.begin()
        # The libraries' objects stay for good: looking through them again and again took a twentieth of the loop's time.
        gc.collect()
        gc.freeze()
        await server.set_ready(NAME, True)
        await models.follow()

    task = asyncio.get_running_loop().create_task(follow())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its own thread pool would take the instances' cores
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # versions are whole; nothing is fetched while serving
    settings = load(InferenceSettings)
    run(main(settings), settings)
