"""Who may import whom: the house's table, held against every import statement of the code, lazy ones included."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLIENT = ROOT / "clients" / "python"

# Our own rooms that each room may know besides itself; the longest prefix of a module's name decides.
ROOMS = {
    "hone": (),
    "services": ("services.chassis",),  # `python -m services` starts programs and imports none
    "services.chassis": (),
    "services.repository": (),
    "services.backends": ("services.repository.manifest",),
    "services.cache": ("hone", "services.chassis", "services.repository"),
    "services.inference": ("hone", "services.chassis", "services.repository", "services.backends"),
    "services.optimization": ("hone", "services.chassis", "services.repository", "services.backends"),
}

# Libraries that may be known in these places alone.
PLACES = {
    "torch": ("services.backends", "services.optimization.techniques", "services.optimization.training"),
    "transformers": ("services.backends", "services.optimization.techniques"),
    "onnxruntime": ("services.backends", "services.optimization.techniques"),
    "tokenizers": ("services.backends", "services.optimization"),
    "onnx": ("services.optimization",),
    "matplotlib": ("services.optimization.page",),
    "jinja2": ("services.optimization.page",),
    "pyarrow": ("services.optimization",),
    "openvino": ("services.backends", "services.optimization.techniques"),
    "torch_pruning": ("services.optimization.techniques",),
    "sqlalchemy": ("services.optimization",),
    "diskcache": ("services.cache",),
    "redis": ("services.cache.valkey_server",),
    "zstandard": ("services.cache.compressed",),
    "typer": ("hone.cli",),
    "rich": ("hone.cli",),
    "grpc": ("hone", "services.chassis", "services.cache", "services.inference", "services.optimization"),
    "grpc_health": ("services.chassis", "hone.cli"),
    "grpc_reflection": ("services.chassis",),
    "opentelemetry": ("services.chassis.otlp",),
    "prometheus_client": ("services.chassis", "services.cache", "services.inference"),
}

PURE = (
    "services.chassis.histogram",
    "services.inference.advice",
    "services.inference.backoff",
    "services.inference.admission",
    "services.inference.batching",
    "services.inference.lanes",
    "services.inference.parallelism",
    "services.inference.residency",
    "services.inference.retries",
    "services.inference.service_time",
    "services.inference.traffic.experiment",
    "services.inference.traffic.guardrails",
    "services.inference.traffic.rates",
    "services.inference.traffic.routing",
    "services.inference.traffic.tallies",
    "services.inference.windows",
    "services.optimization.advisor.draws",
    "services.optimization.advisor.fleet",
    "services.optimization.advisor.returns",
    "services.optimization.advisor.serving.capacity",
    "services.optimization.advisor.serving.knobs",
    "services.optimization.advisor.serving.played",
    "services.optimization.advisor.serving.settings",
    "services.optimization.jobs.job",
    "services.optimization.jobs.scheduling",
)
DOORS = ("servicer", "wire", "__main__")


def module_name(path: Path) -> str:
    root = CLIENT if path.is_relative_to(CLIENT) else ROOT
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def sources() -> list[Path]:
    found = [*(ROOT / "services").rglob("*.py"), *(CLIENT / "hone").rglob("*.py")]
    return sorted(path for path in found if "_pb2" not in path.name)


def imported(source: str) -> Iterator[str]:
    """Every module that the source imports, and for `from a import b` also `a.b`, which may be one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def below(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def room_of(name: str) -> str:
    return max((room for room in ROOMS if below(name, room)), key=len)


def _own_faults(module: str, target: str) -> Iterator[str]:
    room = room_of(module)
    if "_pb2" in target:
        if not module.startswith("hone") and not module.rpartition(".")[2].endswith(DOORS):
            yield "a wire type past the door"
    elif below(target, "hone") and room != "hone":
        if not module.endswith("__main__"):
            yield "the client, outside of a program's composition"
    elif room_of(target) != room and not any(below(target, known) for known in ROOMS[room]):
        yield f"the room {room_of(target)}"
    if "__main__" in target:
        yield "a __main__"


def faults(module: str, source: str) -> list[str]:
    """What a module's imports break."""
    found = []
    for target in imported(source):
        top = target.partition(".")[0]
        reasons = list(_own_faults(module, target)) if top in ("services", "hone") else []
        if top in PLACES and not any(below(module, place) for place in PLACES[top]):
            reasons.append("a library that has its own place")
        if (
            module in PURE
            and not any(below(target, pure) for pure in PURE)
            and (top not in sys.stdlib_module_names or top in ("asyncio", "time"))
        ):
            reasons.append("more than other pure files and the standard library without asyncio and time")
        found += [f"{module} imports {target}: {reason}" for reason in reasons]
    return found


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_a_module_knows_only_what_the_table_allows(path: Path) -> None:
    assert faults(module_name(path), path.read_text(encoding="utf-8")) == []


def test_the_table_knows_modules_that_exist() -> None:
    names = {module_name(path) for path in sources()}
    assert {*PURE} <= names
    assert all(any(below(name, room) for name in names) for room in ROOMS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("services.inference.core", "from services.cache import store"),
        ("services.inference.core", "def f():\n    import services.optimization.jobs.job"),
        ("services.inference.core", "from hone.inference.v1 import inference_pb2"),
        ("services.inference.core", "import hone"),
        ("services.inference.core", "import torch.nn"),
        ("services.chassis.server", "from services.repository.store import Repository"),
        ("services.repository.store", "import grpc"),
        ("services.backends.torch", "from services.repository.store import Repository"),
        ("services.optimization.jobs.runner", "from services.optimization.__main__ import main"),
        ("services.optimization.job_servicer", "import onnxruntime"),
        ("services.optimization.jobs.job", "import time"),
        ("services.inference.batching", "import numpy"),
        ("hone.client", "from services.chassis import errors"),
        ("hone.client", "import typer"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(faults(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("services.inference.servicer", "from hone.inference.v1 import inference_pb2"),
        ("services.inference.__main__", "from hone.aio import CacheClient"),
        ("services.backends.torch", "import torch\nfrom services.repository.manifest import Format"),
        ("services.optimization.jobs.job", "from datetime import datetime"),
    ],
)
def test_an_allowed_import_is_not(module: str, source: str) -> None:
    assert faults(module, source) == []


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("services.optimization.techniques", ("torch", "onnx", "onnxruntime", "transformers")),
        ("services.optimization.job_servicer", ("torch", "onnx", "onnxruntime", "transformers", "matplotlib", "pyarrow")),
        ("services.repository.store", ("grpc", "numpy", "torch")),
        ("hone", ("torch", "typer", "rich", "services", "pydantic")),
        ("hone.aio", ("torch", "typer", "rich", "services", "pydantic")),
    ],
)
def test_importing_is_cheap(module: str, heavy: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*(name for name in {heavy!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
