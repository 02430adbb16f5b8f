"""Weights in blocks of 4 or 8 bits: smaller files that still run."""

import importlib.util
from pathlib import Path

import onnx
import pytest
from pydantic import ValidationError

from services.optimization.failures import Toolchain, UnsupportedOperator
from services.optimization.techniques import find
from services.optimization.techniques.quantization.probe import run_once
from tests.applied import apply
from tests.converted import cosine, weight_bytes
from tests.optimization.techniques.exports import Exports, operators, tensor_model


@pytest.mark.parametrize("name", ["lm", "vit"])
def test_the_file_is_far_smaller_and_answers_nearly_as_its_source(exports: Exports, tmp_path: Path, name: str) -> None:
    source = exports[name]
    target, outcome = apply("int4_weight_only", *source, tmp_path / "int4")
    assert weight_bytes(target) < 0.45 * weight_bytes(source[0])
    assert outcome.notes["quantized_layers"] == operators(target).count("MatMulNBits") >= 8
    assert outcome.notes["quantized_tables"] == operators(target).count("GatherBlockQuantized")
    assert outcome.signature.dtype == "int4"
    assert cosine(source, (target, outcome.signature)) > 0.95


def test_8_bits_are_more_faithful_and_larger_than_4(exports: Exports, tmp_path: Path) -> None:
    source = exports["vit"]
    found = {bits: apply("int4_weight_only", *source, tmp_path / str(bits), bits=bits) for bits in (4, 8)}
    assert cosine(source, (found[8][0], found[8][1].signature)) > cosine(source, (found[4][0], found[4][1].signature))
    assert weight_bytes(found[8][0]) > weight_bytes(found[4][0])
    assert found[8][1].signature.dtype == "int8"


def test_larger_blocks_and_no_zero_points_make_smaller_files(exports: Exports, tmp_path: Path) -> None:
    sizes = [
        weight_bytes(apply("int4_weight_only", *exports["lm"], tmp_path / f"{block}-{symmetric}", block_size=block, symmetric=symmetric)[0])
        for block, symmetric in ((32, False), (64, False), (64, True))
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_tables_raise_the_operator_set_and_can_be_left_out(exports: Exports, tmp_path: Path) -> None:
    opsets, tables = {}, {}
    for quantized in (True, False):
        target, outcome = apply("int4_weight_only", *exports["lm"], tmp_path / str(quantized), quantize_embeddings=quantized)
        opsets[quantized] = next(entry.version for entry in onnx.load(target / "model.onnx").opset_import if entry.domain == "")
        tables[quantized] = outcome.notes["quantized_tables"]
    assert opsets[True] == 21
    assert tables[True] > tables[False] == 0


def test_patterns_exclude_what_they_match(exports: Exports, tmp_path: Path) -> None:
    target, outcome = apply("int4_weight_only", *exports["vit"], tmp_path / "int4", exclude=["*mlp*"])
    assert len(outcome.notes["excluded"]) == 4
    assert operators(target).count("MatMul") >= 4


def test_nothing_left_to_quantize_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match=r"no FP32 MatMul or Gemm .* not excluded"):
        apply("int4_weight_only", *tensor_model(tmp_path / "model"), tmp_path / "int4", exclude=["*"])


def test_a_result_that_does_not_run_or_answers_nan_is_none(tmp_path: Path) -> None:
    folder, signature = tensor_model(tmp_path / "model")
    run_once(folder, signature, 1, "t")
    model = onnx.load(folder / "model.onnx")
    model.graph.initializer[0].CopyFrom(onnx.helper.make_tensor("a", onnx.TensorProto.FLOAT, [16, 8], [float("nan")] * 128))
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(Toolchain, match="t: the quantized model answers NaN or infinity in 'y'"):
        run_once(folder, signature, 1, "t")
    model.graph.node[0].attribute[0].i = 0  # not transposed: shapes that do not fit
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(Toolchain, match="t: the quantized model does not run"):
        run_once(folder, signature, 1, "t")


def test_a_missing_package_is_named_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("int4_weight_only").probe() == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "onnx_ir" in find("int4_weight_only").probe()


def test_it_says_that_it_is_no_tool_for_speed() -> None:
    assert "not faster" in find("int4_weight_only").hardware_note(frozenset({"avx512_vnni"}))


@pytest.mark.parametrize(("field", "value"), [("bits", 3), ("block_size", 48), ("accuracy_level", 5), ("symetric", True)])
def test_bad_parameters_are_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        find("int4_weight_only").parameters.model_validate({field: value})
