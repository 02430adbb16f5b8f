"""The optimization service's doors on a free port, in this process; its jobs stay queued."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from hone.optimization.v1 import advisor_pb2_grpc, jobs_pb2_grpc
from hone.repository.v1 import models_pb2_grpc

from services.chassis.server import Server
from services.optimization.advisor_servicer import AdvisorServicer
from services.optimization.errors import ERRORS
from services.optimization.job_servicer import JobServicer
from services.optimization.jobs.runner import Runner
from services.optimization.jobs.store import JobStore
from services.optimization.model_servicer import ModelServicer
from services.optimization.settings import OptimizationSettings
from services.repository.store import Repository
from services.repository.uploads import UploadLimits, Uploads
from tests.optimization.databases import database, postgres

__all__ = ["database", "postgres"]  # fixtures

MAX_QUEUED = 3
MAX_UPLOAD_BYTES = 1 << 20


@dataclass(frozen=True)
class Doors:
    """Stubs of the running server and what lies behind it."""

    jobs: "jobs_pb2_grpc.JobServiceAsyncStub"
    models: "models_pb2_grpc.ModelServiceAsyncStub"
    advisor: "advisor_pb2_grpc.AdvisorServiceAsyncStub"
    repository: Repository
    store: JobStore
    job_servicer: JobServicer
    address: str


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    settings = OptimizationSettings(
        folder=tmp_path / "optimization",
        repository=tmp_path / "repository",
        port=0,
        max_message_bytes=1 << 21,
        max_queued_jobs=MAX_QUEUED,
    )
    repository, store = Repository(settings.repository), JobStore.at(settings.folder)
    runner = Runner(store, repository, settings)
    servicer = JobServicer(store, runner, repository, settings)
    server = Server(settings, ERRORS)
    uploads = Uploads(repository.root / "uploads", UploadLimits(MAX_UPLOAD_BYTES))
    jobs_pb2_grpc.add_JobServiceServicer_to_server(servicer, server.grpc)
    advisor_pb2_grpc.add_AdvisorServiceServicer_to_server(AdvisorServicer(servicer, store), server.grpc)
    models_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(repository, uploads), server.grpc)
    async with server.running([]), grpc.aio.insecure_channel(address := f"127.0.0.1:{server.port}") as channel:
        jobs, models = jobs_pb2_grpc.JobServiceStub(channel), models_pb2_grpc.ModelServiceStub(channel)
        yield Doors(jobs, models, advisor_pb2_grpc.AdvisorServiceStub(channel), repository, store, servicer, address)
    store.close()
