"""The machine and the libraries that a measurement was made with."""

import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

# Instruction sets that decide which precision is fast here, by the kernel's names for them.
RELEVANT_FEATURES = frozenset(
    {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"}
    | {"asimddp", "i8mm", "bf16", "sve"}
)
LIBRARIES = (
    *("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "openvino"),
    *("safetensors", "tokenizers", "torch", "torch-pruning", "transformers"),
)


@cache
def _cpuinfo() -> Mapping[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty on a system without it."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def cpu_features() -> frozenset[str]:
    """Those of RELEVANT_FEATURES that this processor has."""
    info = _cpuinfo()
    return frozenset((info.get("flags") or info.get("Features") or "").split()) & RELEVANT_FEATURES


def cpu_model() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def has_int8_dot(features: frozenset[str]) -> bool:
    """Whether 8-bit products are summed in 32 bits at once (VNNI, AMX, ARM's dot product), without saturating in 16."""
    return bool(features & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def has_fp16(features: frozenset[str]) -> bool:
    """Whether half-precision products run in hardware: every ARM core with dot products has them."""
    return bool(features & {"avx512_fp16", "asimddp"})


def has_bf16(features: frozenset[str]) -> bool:
    """Whether bfloat16 products run in hardware."""
    return bool(features & {"avx512_bf16", "amx_bf16", "bf16"})


@cache
def library_versions() -> Mapping[str, str]:
    """Installed versions of the libraries that shape a result; one that is not installed is left out."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(threads: int) -> dict[str, Any]:
    """Plain JSON for the report."""
    return {
        "cpu_model": cpu_model(),
        "cpu_features": sorted(cpu_features()),
        "cores": usable_cores(),
        "threads": threads,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "libraries": dict(library_versions()),
    }
