"""Generates the Python stubs of every contract under protos/ into clients/python.

Runs by itself when the wheel or the editable install is built (hatchling's custom hook), so the stubs are never
checked in: a checked-in stub pins every reader to the generator's version.
"""

import importlib.resources
import sys
from pathlib import Path

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOS = Path(__file__).resolve().parent
CLIENT = PROTOS.parent / "clients" / "python"


def generate(protos: Path = PROTOS, out: Path = CLIENT) -> None:
    """Writes `*_pb2.py`, `*_pb2.pyi`, `*_pb2_grpc.py` and `*_pb2_grpc.pyi` beside each other under `out`.

    Raises:
        RuntimeError: protoc refused a contract; its own message is on standard error.
    """
    contracts = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    bin_dir = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"-I{protos}",
        f"-I{importlib.resources.files('grpc_tools') / '_proto'}",
        f"--plugin=protoc-gen-mypy={_plugin(bin_dir, 'protoc-gen-mypy')}",
        f"--plugin=protoc-gen-mypy_grpc={_plugin(bin_dir, 'protoc-gen-mypy_grpc')}",
        *(f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
        *contracts,
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed")


def _plugin(bin_dir: Path, name: str) -> Path:
    """The plugin beside this interpreter, or on the path that the build front end set up."""
    import shutil

    found = shutil.which(name, path=str(bin_dir)) or shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed: it comes with mypy-protobuf")
    return Path(found)


class StubHook(BuildHookInterface):  # type: ignore[type-arg]
    """Generates the stubs before hatchling collects files, for wheels and for editable installs."""

    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        generate()
