"""Half precision: Hugging Face folders in bfloat16 and float16, ONNX graphs in float16."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file
from safetensors.torch import load_file

from services.optimization.failures import Toolchain, UnsupportedOperator
from services.optimization.techniques import find
from services.repository.manifest import Format, Task
from tests.applied import apply
from tests.converted import Made, Sources, answer, batch, cosine, weight_bytes


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def exported(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Made:
    target, outcome = apply("export_onnx", *sources["resnet"], tmp_path_factory.mktemp("onnx") / "made")
    return target, outcome.signature


@pytest.mark.parametrize("name", ["embedding", "tokens", "lm", "resnet", "vit"])
@pytest.mark.parametrize(("technique", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_a_cast_folder_is_half_as_large_and_answers_alike(sources: Sources, tmp_path: Path, name: str, technique: str, dtype: str) -> None:
    folder, signature = sources[name]
    target, outcome = apply(technique, folder, signature, tmp_path / "half")
    assert (outcome.signature.dtype, outcome.signature.format) == (dtype, Format.HUGGINGFACE)
    assert json.loads((target / "config.json").read_text())["dtype"] == dtype
    assert weight_bytes(target) < 0.6 * weight_bytes(folder)
    assert 0 < outcome.notes["largest_deviation"] < 0.1
    assert cosine((folder, signature), (target, outcome.signature)) > 0.999


def test_integers_keep_their_type(sources: Sources, tmp_path: Path) -> None:
    target, outcome = apply("bf16", *sources["resnet"], tmp_path / "half")
    kinds = {str(value.dtype) for value in load_file(target / "model.safetensors").values()}
    assert kinds == {"torch.bfloat16", "torch.int64"}  # batch norms count their batches
    assert outcome.notes["kept_tensors"] > 0


def _with_weight(made: Made, folder: Path, name: str, factor: float) -> Path:
    """A copy of the model with one tensor scaled."""
    folder.mkdir()
    (folder / "config.json").write_bytes((made[0] / "config.json").read_bytes())
    weights = {key: value.numpy() for key, value in load_file(made[0] / "model.safetensors").items()}
    save_file(weights | {name: weights[name] * np.float32(factor)}, folder / "model.safetensors")
    return folder


def test_a_weight_past_float16_is_refused_by_name(sources: Sources, tmp_path: Path) -> None:
    large = _with_weight(sources["resnet"], tmp_path / "large", "classifier.1.weight", 1e7)
    with pytest.raises(UnsupportedOperator, match=r"'classifier\.1\.weight' holds values past"):
        apply("fp16", large, sources["resnet"][1], tmp_path / "half")
    apply("bf16", large, sources["resnet"][1], tmp_path / "bf16")


def test_sums_past_float16_are_refused(sources: Sources, tmp_path: Path) -> None:
    large = _with_weight(sources["resnet"], tmp_path / "large", "classifier.1.weight", 6e4)
    with pytest.raises(Toolchain, match="deviates from its source by inf"):
        apply("fp16", large, sources["resnet"][1], tmp_path / "half")


def test_a_cast_graph_keeps_its_doors(sources: Sources, exported: Made, tmp_path: Path) -> None:
    target, outcome = apply("fp16", *exported, tmp_path / "half")
    graph = onnx.load(target / "model.onnx").graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT16 in {value.data_type for value in graph.initializer}
    assert weight_bytes(target) < 0.6 * weight_bytes(exported[0])
    assert outcome.signature == exported[1].model_copy(update={"dtype": "float16"})
    assert cosine(sources["resnet"], (target, outcome.signature)) > 0.9999


def test_a_graph_of_named_tensors_is_cast_too(exported: Made, tmp_path: Path) -> None:
    folder, signature = exported
    tensors = signature.model_copy(update={"task": Task.TENSOR, "labels": ()})
    target, outcome = apply("fp16", folder, tensors, tmp_path / "half")
    assert outcome.notes["verified_shapes"] > 0
    arrays = batch(signature)
    np.testing.assert_allclose(answer((target, outcome.signature), arrays), answer(exported, arrays), rtol=0.05, atol=0.05)


def test_a_quantized_graph_is_refused(sources: Sources, tmp_path: Path) -> None:
    folder, exported = apply("export_onnx", *sources["vit"], tmp_path / "onnx")
    small, quantized = apply("dynamic_int8", folder, exported.signature, tmp_path / "int8", target_fidelity=None)
    with pytest.raises(UnsupportedOperator, match="quantized already"):
        apply("fp16", small, quantized.signature, tmp_path / "half")


def test_hardware_is_told() -> None:
    assert "slower" in find("fp16").hardware_note(frozenset({"avx512_bf16"}))
    assert find("fp16").hardware_note(frozenset({"avx512_fp16"})) == ""
    assert "emulates" in find("bf16").hardware_note(frozenset({"avx512_fp16"}))
    assert find("bf16").hardware_note(frozenset({"amx_bf16"})) == ""
