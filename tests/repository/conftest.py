"""A repository in a folder of its own, and a way to put small versions into it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from services.repository.manifest import Format, Manifest, Signature, Task, TensorSpec
from services.repository.store import Origin, Repository

SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
Seal = Callable[..., Manifest]


@pytest.fixture
def signature() -> Signature:
    return Signature(task=Task.TENSOR, format=Format.ONNX, inputs=(SPEC,), outputs=(SPEC,))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def seal(repository: Repository, signature: Signature) -> Seal:
    """`seal(name, content=…)` makes the next version, with one file `model.onnx`."""

    def make(name: str = "m", content: bytes = b"weights", origin: Origin | None = None, like: Signature = signature) -> Manifest:
        with repository.staging() as staged:
            (staged / "model.onnx").write_bytes(content)
            return repository.seal(staged, name, like, origin or Origin())

    return make
