"""The machine and the libraries that a measurement was made with."""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

# Instruction sets that decide which precision is fast here, by the kernel's names for them.
RELEVANT_FEATURES = frozenset(
    {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"}
    | {"asimddp", "i8mm", "bf16", "sve"}
)
_DRIVER_S = 10.0  # that a driver may take to answer
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


@dataclass(frozen=True, slots=True)
class Gpu:
    """One of NVIDIA's. Its compute capability decides which precisions it multiplies in at a gain."""

    name: str
    capability: tuple[int, int]
    memory: str  # as the driver tells it, e.g. "81559 MiB"

    def __str__(self) -> str:
        return f"{self.name}, compute capability {'.'.join(map(str, self.capability))}, {self.memory}"

    @property
    def has_fp16(self) -> bool:
        return self.capability >= (7, 0)

    @property
    def has_int8(self) -> bool:
        return self.capability >= (7, 5)

    @property
    def has_bf16(self) -> bool:
        return self.capability >= (8, 0)


@cache
def gpus() -> tuple[Gpu, ...]:
    """That the driver tells of; none where there is no driver, or it does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        told = subprocess.run(  # noqa: S603  the driver's own tool
            [tool, "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_DRIVER_S,
            check=True,
        ).stdout
        return tuple(_gpu(line) for line in told.splitlines() if line.strip())
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _gpu(line: str) -> Gpu:
    """Raises ValueError for what is no line of the driver's answer."""
    name, capability, memory = (part.strip() for part in line.rsplit(",", 2))
    major, minor = capability.split(".")
    return Gpu(name, (int(major), int(minor)), memory)


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
        "gpus": [str(gpu) for gpu in gpus()],
        "cores": usable_cores(),
        "threads": threads,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "libraries": dict(library_versions()),
    }
