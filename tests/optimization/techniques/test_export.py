"""ONNX export of every task, its operator sets, exporters and fusion, and the verification that all converters share."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from services.optimization.failures import BadModel, Toolchain
from services.optimization.techniques import find, onnx_exporters
from services.optimization.techniques.verification import axes, deviation, module_answer, trials, verify
from services.repository.manifest import Format, TensorSpec
from tests.applied import apply
from tests.converted import Sources, answer, batch, cosine


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize("name", ["embedding", "tokens", "lm", "resnet", "vit"])
def test_every_task_exports_and_answers_as_its_source(sources: Sources, tmp_path: Path, name: str) -> None:
    folder, signature = sources[name]
    target, outcome = apply("export_onnx", folder, signature, tmp_path / "onnx")
    assert (outcome.signature.format, outcome.signature.outputs) == (Format.ONNX, signature.outputs)
    assert (outcome.notes["exporter"], outcome.notes["opset"]) == ("torchscript", 17)
    assert outcome.notes["largest_deviation"] < 1e-4
    assert outcome.notes["verified_shapes"] == len(list(trials(signature, 2)))
    assert cosine((folder, signature), (target, outcome.signature)) > 0.99999
    assert answer((target, outcome.signature), batch(outcome.signature, rows=1, tokens=2)).shape[0] == 1


@pytest.mark.parametrize("opset", [14, 20])
def test_the_operator_set_is_the_one_asked_for(sources: Sources, tmp_path: Path, opset: int) -> None:
    target, _ = apply("export_onnx", *sources["resnet"], tmp_path / "onnx", opset=opset)
    assert [entry.version for entry in onnx.load(target / "model.onnx").opset_import if entry.domain == ""] == [opset]


@pytest.mark.parametrize(("field", "value"), [("opset", 13), ("opset", 21), ("exporter", "tracing"), ("optimise", True)])
def test_bad_parameters_are_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        find("export_onnx").parameters.model_validate({field: value})


def test_a_transformer_is_fused_whole(sources: Sources, tmp_path: Path) -> None:
    folder, signature = sources["embedding"]
    target, outcome = apply("export_onnx", folder, signature, tmp_path / "fused", optimize=True)
    counts = {"Attention": 2, "EmbedLayerNormalization": 1, "SkipLayerNormalization": 4, "BiasGelu": 2}
    assert outcome.notes["fused_operators"] == counts
    kinds = [node.op_type for node in onnx.load(target / "model.onnx").graph.node]
    assert {name: kinds.count(name) for name in counts} == counts
    assert cosine((folder, signature), (target, outcome.signature)) > 0.99999
    small, quantized = apply("dynamic_int8", target, outcome.signature, tmp_path / "int8", target_fidelity=None)
    assert cosine((folder, signature), (small, quantized.signature)) > 0.98


@pytest.mark.parametrize(("name", "reason"), [("resnet", "a resnet has none"), ("vit", "no attention pattern was found.*BiasGelu x 2")])
def test_fusion_that_finds_no_attention_is_refused(sources: Sources, tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(Toolchain, match=reason):
        apply("export_onnx", *sources[name], tmp_path / "fused", optimize=True)


def test_the_other_exporter_steps_in_and_the_notes_say_so(sources: Sources, tmp_path: Path) -> None:
    folder, signature = sources["embedding"]
    target, outcome = apply("export_onnx", folder, signature, tmp_path / "onnx", exporter="dynamo")
    if find_spec("onnxscript"):
        assert (outcome.notes["exporter"], "exporter_fallback" in outcome.notes) == ("dynamo", False)
    else:
        assert outcome.notes["exporter"] == "torchscript"
        assert "onnxscript is not installed" in outcome.notes["exporter_fallback"]
    assert cosine((folder, signature), (target, outcome.signature)) > 0.99999


def test_without_any_exporter_both_reasons_are_told(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_exporters, "missing", lambda exporter: f"no {exporter} here")
    with pytest.raises(Toolchain, match=r"no torchscript here.*no dynamo here"):
        apply("export_onnx", *sources["resnet"], tmp_path / "onnx")


def test_a_broken_source_is_a_bad_model(sources: Sources, tmp_path: Path) -> None:
    folder, signature = sources["resnet"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(BadModel, match=r"model\.safetensors"):
        apply("export_onnx", tmp_path / "broken", signature, tmp_path / "onnx")


def test_deviation_is_relative_and_leaves_padding_out() -> None:
    wanted = np.array([[[4.0], [2.0]], [[1.0], [8.0]]], np.float32)
    found = wanted + np.array([[[0.0], [0.4]], [[0.0], [3.0]]], np.float32)
    assert deviation(found, wanted) == pytest.approx(3 / 8)
    assert deviation(found, wanted, np.array([[1, 1], [1, 0]])) == pytest.approx(0.1)
    assert deviation(found[:1], wanted) == float("inf")
    assert deviation(np.full_like(wanted, np.nan), wanted) == float("inf")


def test_axes_that_vary_are_named_alike(sources: Sources) -> None:
    _, text = sources["tokens"]
    assert axes(text, text.inputs[0]) == axes(text, text.outputs[0]) == {0: "rows", 1: "tokens"}
    _, image = sources["resnet"]
    assert axes(image, image.inputs[0]) == {0: "rows"}
    assert axes(image, TensorSpec(name="pixel_values", datatype="FP32", shape=(-1, 3, -1, -1))) == {0: "rows", 2: "height", 3: "width"}


def test_images_are_tried_at_other_sizes_only_where_the_model_takes_them(sources: Sources) -> None:
    _, signature = sources["resnet"]
    assert {arrays["pixel_values"].shape[1:] for arrays in trials(signature, 0)} == {(1, 8, 8)}
    free = signature.model_copy(update={"inputs": (TensorSpec(name="pixel_values", datatype="FP32", shape=(-1, 1, -1, -1)),)})
    assert {arrays["pixel_values"].shape[1:] for arrays in trials(free, 0)} == {(1, 64, 64), (1, 96, 96)}


def test_another_models_answers_do_not_pass(sources: Sources, tmp_path: Path) -> None:
    from services.backends.torch import load_module

    folder, signature = sources["resnet"]
    target, outcome = apply("export_onnx", folder, signature, tmp_path / "onnx")
    module = load_module(folder, signature)
    tried = list(trials(signature, 0))
    assert verify("x", module_answer(module), target, outcome.signature, tried, threads=1, tolerance=1e-3) < 1e-4
    next(module.parameters()).data.mul_(1.5)
    with pytest.raises(Toolchain, match=r"x: .* deviates from its source by .* on pixel_values 1x1x8x8; 0\.001 is allowed"):
        verify("x", module_answer(module), target, outcome.signature, tried, threads=1, tolerance=1e-3)
