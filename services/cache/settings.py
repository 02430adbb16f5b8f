"""What an operator may set, from the environment: `HONE_CACHE_…`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServerSettings

SHARD_BYTES = 1 << 20  # the least that an empty database and its eviction get on with
ENTRY_OVERHEAD_BYTES = 64  # of one result or entry on the wire, rounded up


class CacheSettings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="HONE_CACHE_")

    port: int = Field(7003, ge=0, le=65535, description="gRPC port; 0 takes a free one and prints it.")
    store: Literal["disk", "memory", "valkey"] = Field(
        "disk",
        description="disk survives a restart; memory is quicker and forgets at the end; valkey lets replicas share entries, for a round "
        "trip more. Needs the extra `valkey`.",
    )
    url: str = Field(
        "",
        pattern=r"^($|(valkeys?|rediss?|unix)://)",
        repr=False,  # it may hold a password
        description="`valkey://user:password@host:6379/0` or `redis://…`, with TLS `valkeys://…`: the server of the store valkey. "
        "It should evict with `maxmemory-policy volatile-lru`.",
    )
    url_timeout_s: float = Field(
        0.5, gt=0, description="How long the server may take for a batch; past it a miss, and it is left alone for a while."
    )
    folder: Path = Field(
        Path(".hone/cache"), description="Where entries lie; one process per folder. A local disk: SQLite needs its locks."
    )
    shards: int = Field(
        1, ge=1, le=64, description="Databases, each with a thread; more use more cores and disk queues. A changed number forgets all."
    )
    compress_bytes: int = Field(
        0, ge=0, description="Values from this size on are kept compressed; 0 compresses none. Room for processor time; may change at will."
    )
    max_bytes: int = Field(1 << 30, ge=1 << 20, description="Room for entries; more keeps more, and a restart does not read it in.")
    eviction: Literal["least-recently-used", "least-recently-stored", "least-frequently-used"] = Field(
        "least-recently-used",
        description="What goes first when full. Used costs a write for a lookup that a put follows; stored costs none; "
        "frequently keeps steady favourites through a burst. The memory store knows least-recently-used only.",
    )
    max_key_bytes: int = Field(512, ge=1, le=1 << 16, description="Longest key; keys are held in an index, so long ones cost twice.")
    max_value_bytes: int = Field(
        1 << 20, ge=1, le=64 << 20, description="Largest value; one large one takes the room and time of many small."
    )
    max_batch: int = Field(1024, ge=1, le=1 << 16, description="Items per call; other callers wait while a batch is worked through.")
    max_waiting: int = Field(256, ge=1, description="Calls in the store at once; above it RESOURCE_EXHAUSTED with a time to come back.")
    default_ttl_s: float = Field(86_400, gt=0, description="Life of an entry that brings none; longer hits more and holds more.")
    max_ttl_s: float = Field(30 * 86_400, gt=0, le=10 * 365 * 86_400, description="Longest life that a caller may ask for.")
    max_lease_s: float = Field(
        60, gt=0, le=3600, description="Longest right to compute a missing value; as long others wait where its holder is lost."
    )
    max_leases: int = Field(1 << 16, ge=1, description="Rights to compute at once; above it callers compute the same value side by side.")
    max_untold_keys: int = Field(
        1 << 14, ge=1, description="Changed keys kept for a watcher that reads slowly; past it, it is told to forget everything."
    )

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.default_ttl_s > self.max_ttl_s:
            raise ValueError(f"default_ttl_s {self.default_ttl_s:g} is longer than max_ttl_s {self.max_ttl_s:g}")
        if self.max_bytes // self.shards < SHARD_BYTES:
            raise ValueError(f"max_bytes {self.max_bytes} is less than {SHARD_BYTES} for each of {self.shards} shards")
        if self.max_value_bytes > self.max_bytes // self.shards // 2:
            raise ValueError(f"max_value_bytes {self.max_value_bytes} is more than half of a shard's {self.max_bytes // self.shards}")
        if self.max_value_bytes + self.max_key_bytes + ENTRY_OVERHEAD_BYTES > self.max_message_bytes:
            raise ValueError(f"max_value_bytes {self.max_value_bytes} does not fit in max_message_bytes {self.max_message_bytes}")
        return self

    @model_validator(mode="after")
    def _store_agrees(self) -> Self:
        if self.store != "disk" and self.shards > 1:
            raise ValueError(f"the {self.store} store has no shards; the disk store has")
        if self.store == "memory" and self.eviction != "least-recently-used":
            raise ValueError(f"the memory store evicts the least recently used, not by {self.eviction}")
        return self

    @model_validator(mode="after")
    def _server_agrees(self) -> Self:
        if (self.store == "valkey") != bool(self.url):
            raise ValueError("url and the store valkey need each other")
        if self.store == "valkey" and find_spec("redis") is None:
            raise ValueError("the store valkey needs the extra `valkey`, which is not installed")
        if self.store == "valkey" and "eviction" in self.model_fields_set:
            raise ValueError("the store valkey evicts by its server's own maxmemory-policy, not by eviction")
        return self
