"""Settings of the optimization service."""

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServerSettings


class OptimizationSettings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="HONE_OPTIMIZATION_", extra="forbid", frozen=True)

    port: int = Field(7001, ge=0, le=65535, description="gRPC port; 0 takes a free one and prints it.")
    repository: Path = Field(Path(".hone/repository"), description="Folder of the model repository; this service alone writes to it.")
    folder: Path = Field(Path(".hone/optimization"), description="Folder for the job database, kept steps and scratch space.")
    job_cores: int = Field(
        0, ge=0, le=1024, description="Cores of a running job; 0 takes half of the machine's, so that serving keeps the rest."
    )
    job_nice: int = Field(10, ge=0, le=19, description="Priority of a running job; higher yields more to serving.")
    max_queued_jobs: int = Field(100, ge=1, description="Jobs that may wait; more are refused.")
    max_upload_bytes: int = Field(16 << 30, ge=1, description="Largest model that may be uploaded.")
    evaluation_s: float = Field(60, gt=0, le=3600, description="Time that a job measures latency for; longer gives narrower intervals.")
    kept_steps_bytes: int = Field(
        20 << 30, ge=0, description="Disk for finished steps; more saves repeated work, the least recently used go first."
    )
    cancel_grace_s: float = Field(5, gt=0, description="Time for a cancelled job to end by itself before it is killed.")

    @property
    def share_of_cores(self) -> tuple[int, ...]:
        """The last cores of those that this process may use: serving starts at the first."""
        usable = sorted(os.sched_getaffinity(0))
        return tuple(usable[-(self.job_cores or max(1, len(usable) // 2)) :])
