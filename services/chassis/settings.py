"""Settings from the environment: one class per service, every fault named at once, before anything starts."""

import os
import sys
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServerSettings(BaseSettings):
    """What every server needs. Each service's class adds its own and sets its prefix."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on. Anything but loopback lets others in, without credentials.")
    port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 takes a free one and prints it.")
    metrics_host: str = Field("127.0.0.1", description="Address of the Prometheus port.")
    metrics_port: int | None = Field(None, ge=0, le=65535, description="Prometheus port; unset serves no metrics.")
    grace_s: float = Field(20, gt=0, description="How long running calls may go on after SIGTERM; longer loses fewer.")
    drain_s: float = Field(
        0, ge=0, description="How long calls are still taken after health has turned; longer than a balancer needs to see it."
    )
    max_message_bytes: int = Field(64 << 20, ge=1 << 16, description="Largest message in or out; larger ones cost memory per call.")
    max_metadata_bytes: int = Field(16 << 10, ge=1 << 10, description="Largest metadata of a call.")
    max_concurrent_calls: int = Field(2048, ge=1, description="Calls at once, probes included; above it RESOURCE_EXHAUSTED.")
    default_deadline_s: float = Field(
        60, gt=0, description="Deadline of a call that brings none; without one a lost caller holds its slot."
    )
    otlp_endpoint: str = Field(
        default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
        validate_default=True,
        description="http:// or https:// address of an OpenTelemetry collector (gRPC); empty traces nothing. Needs the extra `tracing`.",
    )
    trace_share: float = Field(
        1.0, ge=0, le=1, description="Share of the calls that are traced where the caller has not decided; each traced call costs time."
    )
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least severe line that is logged.")

    @field_validator("otlp_endpoint")
    @classmethod
    def _can_trace(cls, value: str) -> str:
        if value and not _is_installed("opentelemetry.exporter.otlp.proto.grpc"):
            raise ValueError("tracing needs the extra `tracing`, which is not installed")
        return value

    @property
    def service_name(self) -> str:
        """As traces name the program: `hone-inference`."""
        return f"hone_{self.model_config.get('env_prefix', '').lower().removeprefix('hone_')}".strip("_").replace("_", "-")

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


S = TypeVar("S", bound=ServerSettings)


def load(cls: type[S]) -> S:
    """Reads the settings or ends the process with status 2, every fault on a line of its own."""
    faults = _unknown_variables(cls)
    try:
        settings = cls()
    except ValidationError as error:
        faults += [_line(cls, fault["loc"], fault["msg"]) for fault in error.errors()]
    if not faults:
        return settings
    print("\n".join(faults), file=sys.stderr)
    raise SystemExit(2)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False


def _unknown_variables(cls: type[ServerSettings]) -> list[str]:
    """A misspelt setting would otherwise be a default that nobody chose."""
    prefix = cls.model_config.get("env_prefix", "").upper()
    known = {f"{prefix}{name}".upper() for name in cls.model_fields}
    unknown = sorted(name for name in os.environ if prefix and name.upper().startswith(prefix) and name.upper() not in known)
    return [f"{name}: unknown setting; known are {', '.join(sorted(known))}" for name in unknown]


def _line(cls: type[ServerSettings], location: tuple[int | str, ...], message: str) -> str:
    prefix = cls.model_config.get("env_prefix", "").upper()
    name = prefix + "_".join(str(part).upper() for part in location) if location else "settings"
    return f"{name}: {message}"
