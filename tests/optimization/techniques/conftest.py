"""The ONNX exports that several techniques start from, made once."""

import pytest

from tests.optimization.techniques.exports import Exports


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))
