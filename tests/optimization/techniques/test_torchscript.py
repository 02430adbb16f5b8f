"""TorchScript archives by trace and by script, of every task."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from services.optimization.failures import UnsupportedOperator
from services.optimization.techniques import find
from services.optimization.techniques.torchscript_export import script
from services.repository.manifest import Format
from tests.applied import apply
from tests.converted import Sources, cosine, weight_bytes


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize("name", ["embedding", "tokens", "lm", "resnet", "vit"])
def test_a_trace_answers_as_its_source(sources: Sources, tmp_path: Path, name: str) -> None:
    folder, signature = sources[name]
    target, outcome = apply("torchscript", folder, signature, tmp_path / "ts")
    assert (outcome.signature.format, outcome.signature.inputs) == (Format.TORCHSCRIPT, signature.inputs)
    assert outcome.notes["mode"] == "trace"
    assert outcome.notes["largest_deviation"] < 1e-4
    assert cosine((folder, signature), (target, outcome.signature)) > 0.99999
    assert (target / "config.json").exists()


@pytest.mark.parametrize("name", ["embedding", "resnet"])
def test_what_no_source_compiler_reads_is_scripted_by_its_graph(sources: Sources, tmp_path: Path, name: str) -> None:
    folder, signature = sources[name]
    target, outcome = apply("torchscript", folder, signature, tmp_path / "ts", mode="script")
    assert outcome.notes["scripted"] == "graph of torch.export"
    assert "Config.__init__" in outcome.notes["source_refused"]
    assert cosine((folder, signature), (target, outcome.signature)) > 0.99999


def test_optimization_that_cannot_be_read_back_is_left_out(sources: Sources, tmp_path: Path) -> None:
    _, plain = apply("torchscript", *sources["resnet"], tmp_path / "plain", optimize=False)
    assert (plain.notes["optimized_for_inference"], "optimization_refused" in plain.notes) == (False, False)
    _, text = apply("torchscript", *sources["tokens"], tmp_path / "text")
    assert text.notes["optimized_for_inference"] is True
    _, image = apply("torchscript", *sources["resnet"], tmp_path / "image")  # whether this torch can read it or not, it runs
    assert image.notes["optimized_for_inference"] is not ("optimization_refused" in image.notes)


def test_half_precision_stays_what_it_is(sources: Sources, tmp_path: Path) -> None:
    folder, signature = sources["tokens"]
    half, cast = apply("bf16", folder, signature, tmp_path / "half")
    target, outcome = apply("torchscript", half, cast.signature, tmp_path / "ts")
    assert outcome.signature.dtype == outcome.notes["dtype"] == "bfloat16"
    assert weight_bytes(target) < 0.55 * weight_bytes(folder)
    assert cosine((folder, signature), (target, outcome.signature)) > 0.999


class Scripted(nn.Module):
    """Branches on its data: a trace would keep one side."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        flat = pixel_values.flatten(1)
        if flat.sum() > 0:
            return self.layer(flat)
        return -self.layer(flat)


class OutsideTorch(nn.Module):
    """Leaves torch, so that neither its source nor its graph can be compiled."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return torch.from_numpy(np.sort(pixel_values.numpy()))


def test_a_source_that_can_be_compiled_keeps_its_branches(sources: Sources) -> None:
    module = Scripted().eval()
    scripted, notes = script("torchscript", module, sources["resnet"][1])
    assert notes == {"scripted": "source"}
    for images in (torch.ones(1, 1, 8, 8), -torch.ones(3, 1, 8, 8)):
        assert torch.equal(scripted(images), module(images))


def test_a_module_that_cannot_be_scripted_says_why(sources: Sources) -> None:
    with pytest.raises(UnsupportedOperator, match=r"OutsideTorch cannot be scripted, trace it: .*; its graph: \w+"):
        script("torchscript", OutsideTorch(), sources["resnet"][1])


@pytest.mark.parametrize(("field", "value"), [("mode", "compile"), ("optimize", "perhaps"), ("opset", 17)])
def test_bad_parameters_are_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        find("torchscript").parameters.model_validate({field: value})
