"""Contexts to train in, without a job around them."""

from pathlib import Path
from typing import Any

import pytest

from services.optimization.examples import Examples
from services.optimization.techniques.technique import Context, Model, Parameters
from tests.optimization.training.tiny_models import ContextOf, Told


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def context_of(tmp_path: Path, told: Told) -> ContextOf:
    """(teacher, examples, changed fields) to a context whose source is the teacher's folder unless it is changed."""

    def make(original: Model, training: Examples, **changes: Any) -> Context:
        folders = {name: tmp_path / name for name in ("target", "scratch", "checkpoints", "outputs")}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        given: dict[str, Any] = {
            **folders,
            "source": original.folder,
            "signature": original.signature,
            "parameters": Parameters(),
            "calibration": Examples(),
            "training": training,
            "original": original,
            "seed": 0,
            "threads": 1,
            "progress": told,
        }
        return Context(**(given | changes))

    return make
