"""Settings of the inference service."""

import os
import socket
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServerSettings
from services.inference.batching import Policy


class Batching(StrEnum):
    """How rows are put together; the last two are there to be compared with."""

    LENGTH_AWARE = "length-aware"
    FIRST_COME = "first-come"
    OFF = "off"


class InferenceSettings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="HONE_INFERENCE_", extra="forbid", frozen=True)

    port: int = Field(7002, ge=0, le=65535, description="gRPC port; 0 takes a free one and prints it.")
    repository: Path = Field(Path(".hone/repository"), description="Folder of the model repository; read only.")
    cache: str = Field("", description="Address of the cache service; empty remembers answers in this process only.")
    cache_timeout_s: float = Field(0.05, gt=0, description="Longest wait for the cache; a slower cache is a miss.")
    answers_bytes: int = Field(64 << 20, ge=0, description="Memory for remembered answers; 0 remembers nothing in this process.")
    answers_ttl_s: float = Field(86400, gt=0, description="How long the cache service keeps an answer.")
    instances: int = Field(0, ge=0, le=64, description="Batches of a model at once; 0 takes one per core, up to 4.")
    threads: int = Field(0, ge=0, le=256, description="Threads within a batch; 0 shares the cores among the instances.")
    batching: Batching = Field(Batching.LENGTH_AWARE, description="length-aware pads least; first-come keeps arrival order.")
    batch_rows: int = Field(32, ge=1, description="Most rows of a batch; more raises throughput and latency.")
    batch_tokens: int = Field(4096, ge=1, description="Most tokens of a batch, padding included; bounds its memory and time.")
    max_age_s: float = Field(0.25, gt=0, description="A row that waited this long is in the next batch, whatever it costs.")
    queue_rows: int = Field(1024, ge=1, description="Rows that may wait for a model; more are refused at once.")
    queue_tokens: int = Field(1 << 17, ge=1, description="Tokens that may wait for a model; more are refused at once.")
    max_rows: int = Field(256, ge=1, description="Rows of one request.")
    max_text_chars: int = Field(1 << 16, ge=1, description="Characters of one text; a longer one is refused before it is tokenized.")
    follow_s: float = Field(1.0, gt=0, description="How often the repository's channels are looked at.")
    replica: str = Field(default_factory=socket.gethostname, description="Name of this process in answers and statistics.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.max_rows > self.queue_rows:
            raise ValueError(f"max_rows {self.max_rows} is more than queue_rows {self.queue_rows}: such a request could never be taken")
        return self

    @property
    def policy(self) -> Policy:
        return Policy(
            max_rows=1 if self.batching is Batching.OFF else self.batch_rows,
            max_tokens=self.batch_tokens,
            max_age_s=self.max_age_s,
            queue_rows=self.queue_rows,
            queue_tokens=self.queue_tokens,
            length_aware=self.batching is Batching.LENGTH_AWARE,
        )

    @property
    def parallelism(self) -> tuple[int, int]:
        """(instances, threads within each)."""
        cores = len(os.sched_getaffinity(0))
        instances = self.instances or min(cores, 4)
        return instances, self.threads or max(1, cores // instances)
