"""OpenVINO's representation from Hugging Face folders and from ONNX."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.optimization.failures import BadModel
from services.optimization.techniques import find
from services.repository.manifest import Format, Task
from tests.applied import apply
from tests.converted import Made, Sources, cosine, weight_bytes

pytest.importorskip("openvino", reason="the extra `openvino` is not installed")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def exported(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Made:
    target, outcome = apply("export_onnx", *sources["resnet"], tmp_path_factory.mktemp("onnx") / "made")
    return target, outcome.signature


@pytest.mark.parametrize("name", ["tokens", "resnet"])
def test_a_folder_converts_and_answers_as_it_did(sources: Sources, tmp_path: Path, name: str) -> None:
    folder, signature = sources[name]
    target, outcome = apply("openvino", folder, signature, tmp_path / "ir")
    assert (outcome.signature.format, outcome.signature.dtype) == (Format.OPENVINO, "float32")
    assert outcome.notes["largest_deviation"] < 1e-3
    assert outcome.notes["verified_shapes"] > 0
    assert cosine((folder, signature), (target, outcome.signature)) > 0.9999


def test_a_graph_converts_with_its_weights_in_half(sources: Sources, exported: Made, tmp_path: Path) -> None:
    full, _ = apply("openvino", *exported, tmp_path / "full")
    half, outcome = apply("openvino", *exported, tmp_path / "half", compress_to_fp16=True)
    assert outcome.notes["compressed_to_fp16"] is True
    assert weight_bytes(half) < 0.6 * weight_bytes(full)
    assert cosine(sources["resnet"], (half, outcome.signature)) > 0.9999


def test_named_tensors_and_the_asked_precision_are_carried(exported: Made, tmp_path: Path) -> None:
    folder, signature = exported
    tensors = signature.model_copy(update={"task": Task.TENSOR, "labels": ()})
    _, outcome = apply("openvino", folder, tensors, tmp_path / "ir", dtype="bfloat16")
    assert (outcome.signature.task, outcome.signature.dtype) == (Task.TENSOR, "bfloat16")
    assert outcome.notes["verified_shapes"] > 0


def test_a_broken_graph_is_a_bad_model(exported: Made, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.onnx").write_bytes((exported[0] / "model.onnx").read_bytes()[:1000])
    with pytest.raises(BadModel, match=r"model\.onnx"):
        apply("openvino", tmp_path / "broken", exported[1], tmp_path / "ir")


@pytest.mark.parametrize(("field", "value"), [("dtype", "float16"), ("compress", True)])
def test_bad_parameters_are_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        find("openvino").parameters.model_validate({field: value})


def test_its_absence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("openvino").probe() == ""
    monkeypatch.setattr("services.optimization.techniques.openvino.find_spec", lambda name: None)
    assert "the extra `openvino` brings it" in find("openvino").probe()
