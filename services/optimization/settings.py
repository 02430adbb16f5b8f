"""Settings of the optimization service."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServerSettings
from services.optimization.jobs import memory
from services.optimization.jobs.scheduling import Capacity, Defaults


class OptimizationSettings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="HONE_OPTIMIZATION_", extra="forbid", frozen=True)

    port: int = Field(7001, ge=0, le=65535, description="gRPC port; 0 takes a free one and prints it.")
    repository: Path = Field(Path(".hone/repository"), description="Folder of the model repository; this service alone writes to it.")
    folder: Path = Field(
        Path(".hone/optimization"),
        description="Folder for the embedded job database, kept steps and scratch space; replicas that share it share kept steps.",
    )
    database: str = Field(
        "",
        pattern=r"^($|postgresql\+psycopg://)",
        repr=False,  # it may hold a password
        description="`postgresql+psycopg://…` lets several replicas share the jobs; empty keeps them in SQLite in the folder.",
    )
    lease_s: float = Field(
        30,
        gt=0,
        description="A replica not heard of for so long loses its jobs to others; shorter fails over sooner and by mistake oftener.",
    )
    poll_s: float = Field(1, gt=0, le=60, description="How often the database is asked for other replicas' news; longer asks less.")
    job_cores: int = Field(
        0, ge=0, le=1024, description="Cores of all running jobs; 0 takes half of the machine's, so that serving keeps the rest."
    )
    cores_per_job: int = Field(
        0, ge=0, le=1024, description="Cores of a job that does not say; 0 takes all of job_cores, so that jobs do not disturb each other."
    )
    max_running_jobs: int = Field(8, ge=1, description="Jobs at once, whatever cores and memory are left.")
    memory_bytes: int = Field(0, ge=0, description="Memory of all running jobs; 0 takes three quarters of the machine's.")
    memory_per_job_bytes: int = Field(
        0, ge=0, description="Memory of a job that does not say; 0 takes its part of memory_bytes, as of the cores. Past it a job is ended."
    )
    seconds_per_job: float = Field(0, ge=0, description="Time of a job that does not say; 0 lets it run as long as it takes.")
    seconds_per_search: float = Field(
        1200, gt=0, description="Time of a job with a goal that does not say; a search without an end has none."
    )
    overtaking_s: float = Field(
        600, ge=0, description="How long smaller jobs may overtake one that does not fit yet; longer idles less and makes big jobs wait."
    )
    job_nice: int = Field(10, ge=0, le=19, description="Priority of a running job; higher yields more to serving.")
    max_queued_jobs: int = Field(100, ge=1, description="Jobs that may wait; more are refused.")
    max_upload_bytes: int = Field(16 << 30, ge=1, description="Largest model that may be uploaded.")
    evaluation_s: float = Field(60, gt=0, le=3600, description="Time that a job measures latency for; longer gives narrower intervals.")
    cache: str = Field(
        "",
        description="Address of the cache service, which remembers tokens, what models and teachers answered, calibrated ranges and "
        "measured trials, so that repeated jobs of all replicas need not compute them; it is to take values of 256 KiB. Empty: every job "
        "does.",
    )
    cache_ttl_s: float = Field(
        7 * 86_400, gt=0, description="How long the cache service keeps what a job found out; at most as long as it is set to allow."
    )
    kept_steps_bytes: int = Field(
        20 << 30,
        ge=0,
        description="Disk for finished steps, checkpoints and kept answers; more saves repeated work, the least recently used go first.",
    )
    cancel_grace_s: float = Field(5, gt=0, description="Time for a cancelled job to end by itself before it is killed.")

    @model_validator(mode="after")
    def _defaults_fit(self) -> Self:
        if 0 < self.job_cores < self.cores_per_job:
            raise ValueError(f"cores_per_job: {self.cores_per_job} are more than job_cores, {self.job_cores}")
        if 0 < self.memory_bytes < self.memory_per_job_bytes:
            raise ValueError(f"memory_per_job_bytes: {self.memory_per_job_bytes} are more than memory_bytes, {self.memory_bytes}")
        return self

    @property
    def capacity(self) -> Capacity:
        """What jobs may use of this machine, by its last cores of those that this process may use: serving starts at the first."""
        usable = sorted(os.sched_getaffinity(0))
        cores = usable[-(self.job_cores or max(1, len(usable) // 2)) :]
        return Capacity(tuple(cores), self.memory_bytes or memory.total_bytes() * 3 // 4, self.max_running_jobs)

    @property
    def job_defaults(self) -> Defaults:
        return Defaults(self.cores_per_job, self.memory_per_job_bytes)

    @property
    def patience(self) -> timedelta:
        return timedelta(seconds=self.overtaking_s)
