"""What an operator may set, from the environment: `HONE_CACHE_…`."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServerSettings

ENTRY_OVERHEAD_BYTES = 64  # of one result or entry on the wire, rounded up


class CacheSettings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="HONE_CACHE_")

    port: int = Field(7003, ge=0, le=65535, description="gRPC port; 0 takes a free one and prints it.")
    store: Literal["disk", "memory"] = Field("disk", description="disk survives a restart; memory is quicker and forgets at the end.")
    folder: Path = Field(
        Path(".hone/cache"), description="Where entries lie; one process per folder. A local disk: SQLite needs its locks."
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

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.default_ttl_s > self.max_ttl_s:
            raise ValueError(f"default_ttl_s {self.default_ttl_s:g} is longer than max_ttl_s {self.max_ttl_s:g}")
        if self.max_value_bytes > self.max_bytes // 2:
            raise ValueError(f"max_value_bytes {self.max_value_bytes} is more than half of max_bytes {self.max_bytes}")
        if self.max_value_bytes + self.max_key_bytes + ENTRY_OVERHEAD_BYTES > self.max_message_bytes:
            raise ValueError(f"max_value_bytes {self.max_value_bytes} does not fit in max_message_bytes {self.max_message_bytes}")
        if self.store == "memory" and self.eviction != "least-recently-used":
            raise ValueError(f"the memory store evicts the least recently used, not by {self.eviction}")
        return self
