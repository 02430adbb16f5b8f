"""Zeros: exactly as many as asked, in the pattern asked, and none comes back in training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file

from benchmarks import corpus
from services.optimization.examples import Examples
from services.optimization.failures import UnsupportedOperator
from services.optimization.techniques import find
from services.optimization.techniques.pruning.unstructured import smallest, smallest_of_each
from tests.applied import apply
from tests.models import digits_resnet, digits_resnet_signature
from tests.optimization.techniques.random_models import build


def blocks(weight: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    """[…, size]: neighbours along the inputs."""
    moved = weight.movedim(dim, -1)
    return moved.reshape(*moved.shape[:-1], -1, size)


@settings(max_examples=40, deadline=None)
@given(pattern=st.sampled_from([(2, 4), (1, 4), (4, 8)]), dim=st.integers(0, 1), seed=st.integers(0, 99), ties=st.booleans())
def test_of_every_block_the_largest_stay(pattern: tuple[int, int], dim: int, seed: int, ties: bool) -> None:
    kept, size = pattern
    values = torch.randn(16, 24, generator=torch.Generator().manual_seed(seed))
    values = values.round() if ties else values
    gone = smallest_of_each(values, kept, size, dim)
    assert torch.equal((~blocks(gone, size, dim)).sum(-1), torch.full((blocks(gone, size, dim).shape[:-1]), kept))
    left, lost = (blocks(values.abs().masked_fill(mask, fill), size, dim) for mask, fill in [(gone, torch.inf), (~gone, 0.0)])
    assert (left.amin(-1) >= lost.amax(-1)).all()


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 60), seed=st.integers(0, 99), ties=st.booleans())
def test_exactly_the_smallest_go(count: int, seed: int, ties: bool) -> None:
    values = torch.randn(6, 10, generator=torch.Generator().manual_seed(seed))
    values = values.round() if ties else values
    gone = smallest(values, count)
    assert int(gone.sum()) == count
    if 0 < count < 60:
        assert values.abs()[gone].max() <= values.abs()[~gone].min()


@pytest.mark.parametrize(("pattern", "kept", "size"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
@pytest.mark.parametrize("family", ["bert", "gpt2", "resnet"])
def test_the_saved_weights_have_the_pattern_along_their_inputs(tmp_path: Path, family: str, pattern: str, kept: int, size: int) -> None:
    folder, signature = build(family, tmp_path / "model")
    target, outcome = apply("prune_weights", folder, signature, tmp_path / "prune", pattern=pattern, recovery=None)
    weights = load_file(target / "model.safetensors")
    assert len(outcome.notes["layers"]) >= 7
    for row in outcome.notes["layers"]:
        inputs = 0 if family == "gpt2" else 1  # GPT-2 keeps its weights transposed
        nonzero = (blocks(weights[f"{row['place']}.weight"], size, inputs) != 0).sum(-1)
        assert (nonzero == kept).all()
        assert row["sparsity"] == pytest.approx(1 - kept / size)
    assert outcome.notes["left_whole"] == (["resnet.embedder.embedder.convolution"] if family == "resnet" else [])


def sparsities(outcome: Any) -> list[float]:
    return [row["sparsity"] for row in outcome.notes["layers"]]


def test_within_each_layer_and_among_all(tmp_path: Path) -> None:
    folder, signature = build("bert", tmp_path / "model")
    _, each = apply("prune_weights", folder, signature, tmp_path / "each", sparsity=0.75, recovery=None)
    _, among = apply("prune_weights", folder, signature, tmp_path / "among", sparsity=0.75, recovery=None, scope="global")
    assert sparsities(each) == pytest.approx([0.75] * len(sparsities(each)), abs=1e-2)
    assert among.notes["sparsity"] == pytest.approx(0.75, abs=1e-4)
    assert max(sparsities(among)) - min(sparsities(among)) > 0.005
    assert among.notes["zeros"] == sum(row["zeros"] for row in among.notes["layers"])


def test_excluded_and_shared_weights_stay(tmp_path: Path) -> None:
    folder, signature = build("gpt2", tmp_path / "model")
    _, outcome = apply("prune_weights", folder, signature, tmp_path / "prune", exclude=["*.mlp.*"], recovery=None)
    places = [row["place"] for row in outcome.notes["layers"]]
    assert len(places) == 6  # of each layer's attention; the head is the table of embeddings
    assert all(".attn." in place for place in places)


def test_zeros_survive_training_and_compress(tmp_path: Path) -> None:
    folder = digits_resnet(tmp_path / "model")
    images = corpus.digits("train")
    training = Examples(arrays={"pixel_values": images.pixel_values[:300]}, labels=images.labels[:300])
    recovery = {"epochs": 1, "learning_rate": 1e-2}
    arguments = ("prune_weights", folder, digits_resnet_signature())
    bare, _ = apply(*arguments, tmp_path / "bare", sparsity=0.8, recovery=None)
    target, outcome = apply(*arguments, tmp_path / "prune", training=training, sparsity=0.8, recovery=recovery)
    before, after = load_file(bare / "model.safetensors"), load_file(target / "model.safetensors")
    for row in outcome.notes["layers"]:
        name = f"{row['place']}.weight"
        assert bool((after[name][before[name] == 0] == 0).all())
        assert not torch.equal(after[name], before[name])
        assert np.isclose(row["sparsity"], 0.8, atol=0.01)
    assert outcome.notes["compressed_bytes"] < 0.6 * outcome.notes["compressed_bytes_before"]
    assert outcome.notes["curves"]
    assert "nothing gets faster on processors" in outcome.notes["worth"]
    assert "gain no speed" in find("prune_weights").hardware_note()


def test_a_pattern_that_fits_nowhere(tmp_path: Path) -> None:
    folder, signature = build("bert", tmp_path / "model")
    with pytest.raises(UnsupportedOperator, match="no linear layer"):
        apply("prune_weights", folder, signature, tmp_path / "prune", exclude=["*"], recovery=None)


@pytest.mark.parametrize("parameters", [{"sparsity": 0}, {"sparsity": 1}, {"pattern": "3:5"}, {"scope": "row"}])
def test_parameters_at_fault_are_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(parameters))):
        find("prune_weights").parameters.model_validate(parameters)
