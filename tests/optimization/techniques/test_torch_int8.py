"""Dynamic INT8 by torch: what is quantized, in how many bits, and that the archive runs."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.optimization.environment import cpu_features, has_int8_dot
from services.optimization.failures import UnsupportedOperator
from services.optimization.techniques import find
from services.repository.manifest import Format
from tests.applied import apply
from tests.converted import Sources, cosine, weight_bytes

NAME = "torch_dynamic_int8"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


def test_layers_and_tables_of_an_encoder(sources: Sources, tmp_path: Path) -> None:
    folder, signature = sources["embedding"]
    target, outcome = apply(NAME, folder, signature, tmp_path / "int8")
    assert (outcome.signature.format, outcome.signature.dtype) == (Format.TORCHSCRIPT, "int8")
    assert (outcome.notes["quantized_products"], outcome.notes["quantized_tables"], outcome.notes["excluded"]) == (13, 3, [])
    assert outcome.notes["reduce_range"] is not has_int8_dot(cpu_features())
    assert outcome.notes["largest_deviation_from_the_untraced"] < 1e-3
    assert weight_bytes(target) < 0.35 * weight_bytes(folder)
    assert cosine((folder, signature), (target, outcome.signature)) > 0.98


def test_a_scale_per_channel_is_more_faithful_than_one_per_tensor(sources: Sources, tmp_path: Path) -> None:
    folder, signature = sources["embedding"]
    found = []
    for per_channel in (True, False):
        target, outcome = apply(NAME, folder, signature, tmp_path / str(per_channel), per_channel=per_channel, quantize_embeddings=False)
        found.append(cosine((folder, signature), (target, outcome.signature)))
    assert found[0] > found[1]


def test_the_range_is_what_was_asked_for(sources: Sources, tmp_path: Path) -> None:
    """Both make an archive, and not the same one: 7 bits of activation answer differently from 8."""
    folder, signature = sources["tokens"]
    made = []
    for reduce_range in (True, False):
        target, outcome = apply(NAME, folder, signature, tmp_path / str(reduce_range), reduce_range=reduce_range)
        assert outcome.notes["reduce_range"] is reduce_range
        made.append((target, outcome.signature))
    assert cosine(*made) < 1 - 1e-6


def test_a_language_models_transposed_layers_are_quantized(sources: Sources, tmp_path: Path) -> None:
    folder, signature = sources["lm"]
    target, outcome = apply(NAME, folder, signature, tmp_path / "int8")
    assert outcome.notes["quantized_products"] == 9  # two layers of four, and the head
    assert cosine((folder, signature), (target, outcome.signature)) > 0.98


def test_excluded_layers_are_named(sources: Sources, tmp_path: Path) -> None:
    _, outcome = apply(NAME, *sources["tokens"], tmp_path / "int8", exclude=["*.output.dense", "model.classifier"])
    assert outcome.notes["excluded"][0] == "model.bert.encoder.layer.0.attention.output.dense"
    assert "model.classifier" in outcome.notes["excluded"]
    assert len(outcome.notes["excluded"]) == 5


def test_nothing_left_to_quantize_is_refused(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match="of 1 linear layers none is left to quantize; convolutions take no dynamic INT8"):
        apply(NAME, *sources["resnet"], tmp_path / "int8", exclude=["model.classifier*"])


@pytest.mark.parametrize(("field", "value"), [("per_channel", "both"), ("exclude", ["x"] * 65), ("target_fidelity", 0.9)])
def test_bad_parameters_are_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        find(NAME).parameters.model_validate({field: value})


def test_a_torch_without_the_deprecated_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(NAME).probe() == ""
    monkeypatch.setattr("services.optimization.techniques.torch_dynamic_int8.has_submodule", lambda *names: False)
    assert "dynamic_int8 quantizes the ONNX export instead" in find(NAME).probe()
