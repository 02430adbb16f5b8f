"""`python -m services.optimization`: the repository's door and the optimization jobs."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import grpc
from hone import channel
from hone.aio import CacheClient
from hone.optimization.v1 import advisor_pb2_grpc, jobs_pb2_grpc
from hone.repository.v1 import datasets_pb2_grpc, models_pb2_grpc

from services.chassis.server import Server, run, until_signalled
from services.chassis.settings import load
from services.optimization import advisor_servicer, dataset_servicer, job_servicer, model_servicer
from services.optimization.errors import ERRORS
from services.optimization.jobs.runner import Runner
from services.optimization.jobs.store import JobStore
from services.optimization.jobs.writers import writing
from services.optimization.remembered.departed import Departed
from services.optimization.settings import OptimizationSettings
from services.repository.datasets import Datasets
from services.repository.store import Repository
from services.repository.uploads import UploadLimits, Uploads

SERVICES = (job_servicer.NAME, advisor_servicer.NAME, model_servicer.NAME, dataset_servicer.NAME)
UPLOAD_LIFE_S = 7 * 24 * 3600  # an unfinished upload that nobody touched for so long is given up


async def main(settings: OptimizationSettings) -> None:
    async with AsyncExitStack() as stack:
        server = Server(settings, ERRORS)
        repository = Repository(settings.repository)
        uploads = Uploads(repository.root / "uploads", UploadLimits(settings.max_upload_bytes))
        # A folder of their own: an upload id is a model's or a dataset's without either knowing of the other.
        dataset_uploads = Uploads(repository.root / "dataset-uploads", UploadLimits(settings.max_upload_bytes), "header.file")
        stack.enter_context(writing(repository.root, lambda: _tidy(repository, (uploads, dataset_uploads))))
        store = JobStore.open(settings.database, settings.folder)
        stack.callback(store.close)
        departed = await stack.enter_async_context(_departed(settings, repository, server))
        runner = Runner(store, repository, settings, departed)
        await stack.enter_async_context(_running(runner))
        jobs = job_servicer.JobServicer(store, runner, repository, settings)
        jobs_pb2_grpc.add_JobServiceServicer_to_server(jobs, server.grpc)
        advisor_pb2_grpc.add_AdvisorServiceServicer_to_server(advisor_servicer.AdvisorServicer(jobs, store), server.grpc)
        models_pb2_grpc.add_ModelServiceServicer_to_server(model_servicer.ModelServicer(repository, uploads, departed), server.grpc)
        datasets = dataset_servicer.DatasetServicer(Datasets(repository.root), dataset_uploads)
        datasets_pb2_grpc.add_DatasetServiceServicer_to_server(datasets, server.grpc)
        await stack.enter_async_context(server.running(SERVICES))
        stack.callback(jobs.close)  # before the server stops: it waits for its streams
        for name in SERVICES:
            await server.set_ready(name, True)
        await until_signalled()


def _tidy(repository: Repository, every: Iterable[Uploads]) -> None:
    """Nobody else writes to the repository now, so what is unfinished there was left by somebody's earlier life."""
    repository.sweep()
    for uploads in every:
        uploads.sweep(time.time() - UPLOAD_LIFE_S)


@asynccontextmanager
async def _departed(settings: OptimizationSettings, repository: Repository, server: Server) -> AsyncIterator[Departed | None]:
    """None without a cache: there is nothing to clear."""
    if not settings.cache:
        yield None
        return
    async with grpc.aio.insecure_channel(
        settings.cache, channel.options(retries=False), interceptors=server.client_interceptors
    ) as connection:
        departed = Departed(repository, CacheClient(settings.cache, connection=connection).clear)
        async with _until_left(departed.follow()):
            yield departed


@asynccontextmanager
async def _until_left(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.get_running_loop().create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def _running(runner: Runner) -> AsyncIterator[None]:
    async with _until_left(runner.run()):
        try:
            yield
        finally:
            await runner.stop()


if __name__ == "__main__":
    settings = load(OptimizationSettings)
    run(main(settings), settings)
