"""Settings of the inference service."""

import os
import socket
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServerSettings
from services.inference.advice import Advice, Bounds
from services.inference.batching import Batching as Batching
from services.inference.batching import Policy
from services.inference.parallelism import Parallelism


class Isolation(StrEnum):
    """Where instances run."""

    OFF = "off"
    PROCESS = "process"


class InferenceSettings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="HONE_INFERENCE_", extra="forbid", frozen=True)

    port: int = Field(7002, ge=0, le=65535, description="gRPC port; 0 takes a free one and prints it.")
    repository: Path = Field(Path(".hone/repository"), description="Folder of the model repository; read only.")
    state: Path | None = Field(
        None, description="Folder for counts and rollbacks of split traffic, shared by the replicas; unset: `state` beside the repository."
    )
    traffic_s: float = Field(2.0, gt=0, description="How often counts of split traffic are kept, and guardrails judged.")
    shadow_calls: int = Field(4, ge=0, description="Copies of calls that run on shadow versions at once; 0 copies none.")
    cache: str = Field("", description="Address of the cache service; empty remembers answers in this process only.")
    cache_timeout_s: float = Field(0.05, gt=0, description="Longest wait for the cache; a slower cache is a miss.")
    cache_lease_s: float = Field(
        10,
        gt=0,
        description="How long one replica may take over an answer that others wait for (each at most cache_timeout_s), queueing "
        "included: what it stores later is refused. At most the cache service's max_lease_s, which refuses lookups otherwise.",
    )
    answers_bytes: int = Field(64 << 20, ge=0, description="Memory for remembered answers; 0 remembers nothing in this process.")
    answers_ttl_s: float = Field(86400, gt=0, description="How long the cache service keeps an answer.")
    instances: int = Field(0, ge=0, le=64, description="Batches of a model at once; 0, with threads 0, takes what measures best.")
    threads: int = Field(0, ge=0, le=256, description="Threads within a batch; 0, with instances given, shares the cores among them.")
    tune_s: float = Field(
        1.5, ge=0, le=60, description="How long divisions into instances and threads are compared; 0: one thread each, up to 4 instances."
    )
    pin: bool = Field(False, description="Binds instances to cores of their own; steadier alone on a machine, slower beside neighbours.")
    isolation: Isolation = Field(
        Isolation.OFF, description="process: each instance in a process, which holds the weights again, and can be killed and restarted."
    )
    hang_s: float = Field(
        30, gt=0, description="A batch hangs when it runs this long, and 20 times its predicted time, longer; its instance is replaced."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where the model's engine finds one.")
    torch_compile: bool = Field(False, description="Compiles Hugging Face folders while loading: minutes, for faster batches.")
    batching: Batching = Field(Batching.LENGTH_AWARE, description="length-aware pads least; first-come keeps arrival order.")
    buckets: tuple[int, ...] = Field(
        (16, 32, 64, 128, 256, 512), description="Longest rows, in tokens, of each of the fixed buckets; JSON in the environment."
    )
    batch_rows: int = Field(32, ge=1, description="Most rows of a batch; more raises throughput and latency.")
    batch_tokens: int = Field(4096, ge=1, description="Most tokens of a batch, padding included; bounds its memory and time.")
    max_age_s: float = Field(0.25, gt=0, description="A row that waited this long is in the next batch, whatever it costs.")
    queue_rows: int = Field(1024, ge=1, description="Rows that may wait for a model; more are refused at once.")
    queue_tokens: int = Field(1 << 17, ge=1, description="Tokens that may wait for a model; more are refused at once.")
    max_rows: int = Field(256, ge=1, description="Rows of one request.")
    max_text_chars: int = Field(1 << 16, ge=1, description="Characters of one text; a longer one is refused before it is tokenized.")
    follow_s: float = Field(1.0, gt=0, description="How often the repository's channels are looked at.")
    memory_bytes: int | None = Field(
        None, ge=0, description="Memory that loaded models may hold together; 0 sets no limit, unset takes 60 % of the machine's."
    )
    spare_s: float = Field(10, ge=0, description="A version loaded less than this ago makes room for another only if nothing else can.")
    load_on_demand: bool = Field(False, description="Whether a call for NAME@VERSION loads a version that no channel points at.")
    load_wait_s: float = Field(30, gt=0, description="Longest that a load waits for room while calls hold what could be unloaded.")
    load_waiters: int = Field(256, ge=1, description="Calls that may wait for versions to be loaded; more are told to come back.")
    parallel_loads: int = Field(2, ge=1, description="Versions loaded at once; more are ready sooner and slow down those that serve.")
    oip_triton_codes: bool = Field(
        False, description="Open Inference Protocol: a full queue and a time-out are UNAVAILABLE, as Triton tells them."
    )
    oip_stream_idle_s: float = Field(600, gt=0, description="Open Inference Protocol: a stream without a request for so long is ended.")
    replica: str = Field(default_factory=socket.gethostname, description="Name of this process in answers and statistics.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.max_rows > self.queue_rows:
            raise ValueError(f"max_rows {self.max_rows} is more than queue_rows {self.queue_rows}: such a request could never be taken")
        if list(self.buckets) != sorted({bound for bound in self.buckets if bound > 0}):
            raise ValueError(f"buckets must be positive and ascending, not {list(self.buckets)}")
        if self.load_on_demand and self.memory_bytes == 0:
            raise ValueError("load_on_demand without a memory_bytes would keep every version that was ever asked for")
        wanted = self.parallelism
        if self.pin and wanted.instances * wanted.threads > len(self.cores):
            raise ValueError(f"pin: {wanted} need more than the {len(self.cores)} cores of this process")
        return self

    @property
    def state_folder(self) -> Path:
        return self.state if self.state is not None else self.repository.resolve().parent / "state"

    @property
    def bounds(self) -> Bounds:
        return Bounds(len(self.cores), self.queue_rows, self.queue_tokens)

    def followed(self, advice: Advice) -> dict[str, Any]:
        """What of a version's advice is in force: what the operator set, default or not, wins over it."""
        return {name: value for name, value in advice.settings.items() if name not in self.model_fields_set}

    def advised(self, advice: Advice) -> Self:
        """As a version is served that brings this advice."""
        return self.model_copy(update=self.followed(advice))

    @property
    def policy(self) -> Policy:
        return Policy(
            max_rows=1 if self.batching is Batching.OFF else self.batch_rows,
            max_tokens=self.batch_tokens,
            max_age_s=self.max_age_s,
            queue_rows=self.queue_rows,
            queue_tokens=self.queue_tokens,
            length_aware=self.batching is Batching.LENGTH_AWARE,
            buckets=self.buckets if self.batching is Batching.FIXED_BUCKETS else (),
        )

    @property
    def cores(self) -> tuple[int, ...]:
        """That this process may use."""
        return tuple(sorted(os.sched_getaffinity(0)))

    @property
    def parallelism(self) -> Parallelism:
        """Without measuring."""
        instances = self.instances or min(len(self.cores), 4)
        return Parallelism(instances, self.threads or max(1, len(self.cores) // instances))
