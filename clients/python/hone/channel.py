"""Channels to the services: addresses, limits, and which calls are repeated when they fail."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

MAX_MESSAGE_BYTES = 64 << 20
TIMEOUT_S = 30.0

# Where `python -m services` listens.
LOCAL = MappingProxyType({"optimization": "127.0.0.1:7001", "inference": "127.0.0.1:7002", "cache": "127.0.0.1:7003"})

# Calls that may be made twice: it comes to the same. RollBack, PromoteArm, DeleteVersion, UnloadModel and RecordOutcome do not and are
# made once. A Put under a lease that was stored by its first try may be told that it lost the lease: the value is there all the same.
SAFE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "hone.inference.v1.InferenceService": ("Embed", "Classify", "Predict", "ListModels", "LoadModel", "GetStatistics", "GetExperiment"),
        "hone.optimization.v1.AdvisorService": ("Recommend", "PlanRecommendation", "GetRecommendation", "EstimateWorth", "ListScenarios"),
        "hone.optimization.v1.JobService": ("CreateJob", "GetJob", "ListJobs", "CancelJob", "ListTechniques"),
        "hone.repository.v1.DatasetService": ("GetUpload", "GetDataset", "ListDatasets", "PreviewDataset"),
        "hone.repository.v1.ModelService": (
            *("GetUpload", "GetModel", "ListModels", "SetChannel"),
            *("SetTraffic", "GetTraffic", "ClearTraffic"),
        ),
        "hone.cache.v1.CacheService": ("Get", "Put", "Delete", "Clear", "Release", "Configure", "GetStats"),
    }
)


# Who is told "too many" by these waits milliseconds; a full job queue or disk stays full for minutes, and the caller should know.
BRIEFLY_FULL = ("hone.inference.v1.InferenceService", "hone.cache.v1.CacheService")


@dataclass(frozen=True, slots=True)
class Addresses:
    """One per service; they may be equal (a gateway)."""

    optimization: str
    inference: str
    cache: str


def addresses(address: str | None, *, optimization: str | None, inference: str | None, cache: str | None) -> Addresses:
    """A service's own address, else the common one, else `HONE_ADDRESS`, else this machine's default port."""
    common = address or os.environ.get("HONE_ADDRESS")
    return Addresses(
        optimization=optimization or common or LOCAL["optimization"],
        inference=inference or common or LOCAL["inference"],
        cache=cache or common or LOCAL["cache"],
    )


def options(*, retries: bool) -> list[tuple[str, str | int]]:
    """Channel arguments. gRPC itself repeats and backs off, and obeys the server's `grpc-retry-pushback-ms`."""
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retries:
        config["methodConfig"] = [_method_config(service, methods) for service, methods in SAFE.items()]
        config["retryThrottling"] = {"maxTokens": 100, "tokenRatio": 0.5}
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.enable_retries", int(retries)),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
    ]


def _method_config(service: str, methods: Sequence[str]) -> dict[str, object]:
    policy = {
        "maxAttempts": 5,
        "initialBackoff": "0.1s",
        "maxBackoff": "3s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", *(["RESOURCE_EXHAUSTED"] if service in BRIEFLY_FULL else [])],
    }
    return {"name": [{"service": service, "method": method} for method in methods], "retryPolicy": policy}
