"""Structured pruning of real models: what is measured, chosen, recovered, refused and reported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks import corpus
from benchmarks.sentences import sentences
from services import backends
from services.backends.torch import load_module
from services.optimization.examples import IGNORED, Examples
from services.optimization.failures import BadModel, NotEnoughData, UnsupportedOperator
from services.optimization.rows import TextRows
from services.optimization.techniques import find
from services.optimization.techniques.pruning import gradients
from services.optimization.techniques.pruning.costs import count_macs
from services.optimization.techniques.pruning.importance import magnitudes, taylor
from services.optimization.techniques.pruning.parts import Parts, Slice
from services.optimization.techniques.pruning.selection import Aim, keep_best, keep_globally, keep_per_layer, spell
from services.optimization.uploads.inspection import inspect_folder
from services.repository.manifest import Task
from tests.applied import apply
from tests.models import digits_resnet, digits_resnet_signature, minilm_signature, shallow_minilm
from tests.optimization.techniques.random_models import build

SHORT = {"epochs": 1, "max_steps": 2}


# Importance


def hand_made() -> tuple[nn.Linear, nn.Linear, Parts]:
    """Two linear layers with three neurons between them."""
    rising, falling = nn.Linear(2, 3), nn.Linear(3, 1)
    with torch.no_grad():
        rising.weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0], [0.5, 0.5]]))
        rising.bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
        falling.weight.copy_(torch.tensor([[1.0, -1.0, 0.0]]))
    each = torch.arange(3).view(3, 1)
    slices = (Slice(rising, "weight", 0, each), Slice(rising, "bias", 0, each), Slice(falling, "weight", 1, each))
    return rising, falling, Parts("ffn", "hand", 3, lambda keep: None, slices)


def test_norms_by_hand() -> None:
    parts = hand_made()[-1]
    assert magnitudes(parts, "l1").tolist() == pytest.approx([4.0, 4.0, 1.0])  # no bias
    assert magnitudes(parts, "l2").tolist() == pytest.approx([6**0.5, 10**0.5, 0.5**0.5])


def test_the_first_order_change_by_hand() -> None:
    rising, falling, parts = hand_made()
    model = nn.Sequential(rising, falling)
    rows = [torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]])]
    scores = taylor([parts], model, (model(row).sum() for row in rows))[0]
    # A linear net: w·∂y/∂w over a neuron's rows is its activation times its reader, and so it is over what reads it.
    activations = torch.cat([rising(row) for row in rows]).detach()
    by_hand = (2 * activations * falling.weight.detach()).abs().mean(0)
    assert scores.tolist() == pytest.approx(by_hand.tolist())
    assert all(parameter.grad is None for parameter in model.parameters())


class Echo(nn.Module):
    """Answers one fixed logit table by token id."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.table[input_ids]


def test_losses_by_task_count_no_padding() -> None:
    table = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    ids = [np.array([1, 2, 3, 0]), np.array([3, 1])]
    labels = [np.array([0, IGNORED, 2, 1]), np.array([IGNORED, 3])]
    rows = TextRows(ids, minilm_signature(), labels)
    (found,) = gradients.losses(Echo(table), Task.TOKEN_CLASSIFICATION, rows, Examples(), seed=0)
    wanted = cross_entropy(table[torch.tensor([1, 3, 0, 1])], torch.tensor([0, 2, 1, 3]))
    torch.testing.assert_close(found.detach(), wanted)
    (found,) = gradients.losses(Echo(table), Task.CAUSAL_LM, rows, Examples(), seed=0)
    torch.testing.assert_close(found.detach(), cross_entropy(table[torch.tensor([1, 2, 3, 3])], torch.tensor([2, 3, 0, 1])))


# Selection


def test_the_best_stay_and_of_equal_ones_the_first() -> None:
    assert keep_best(torch.tensor([1.0, 3.0, 2.0, 3.0, 1.0]), 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("ratio", "multiple", "count", "kept"), [(0.5, 1, 12, 6), (0.25, 8, 64, 48), (0.9, 8, 30, 8), (0.001, 8, 33, 33)])
def test_how_many_stay(ratio: float, multiple: int, count: int, kept: int) -> None:
    assert Aim(ratio, multiple).kept(count) == kept


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_shares_of_several_iterations_add_up(of: int) -> None:
    aim, scores = Aim(0.6), [torch.rand(10), torch.rand(20)]
    for number in range(1, of + 1):
        keeps = keep_per_layer(scores, [10, 20], aim, number / of)
        scores = [values[keep] for values, keep in zip(scores, keeps, strict=True)]
    assert [len(values) for values in scores] == [4, 8]


def test_a_global_ranking_spares_the_best_layers_and_empties_none() -> None:
    scores = [torch.tensor([9.0, 8.0, 7.0, 6.0]), torch.tensor([0.1, 0.4, 0.3, 0.2])]
    keeps = keep_globally(scores, [4, 4], Aim(0.5), 1.0, comparable=True)
    assert [keep.tolist() for keep in keeps] == [[0, 1, 2], [1]]
    leveled = keep_globally(scores, [4, 4], Aim(0.5), 1.0, comparable=False)
    assert [len(keep) for keep in leveled] == [2, 2]


def test_positions_are_told_as_ranges() -> None:
    assert spell([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


# Real models


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_resnet(tmp_path_factory.mktemp("resnet") / "model")


def digits(part: Any, rows: int) -> Examples:
    images = corpus.digits(part)
    return Examples(arrays={"pixel_values": images.pixel_values[:rows]}, labels=images.labels[:rows])


def accuracy(folder: Path) -> float:
    held_out = digits("evaluation", 360)
    with torch.inference_mode():
        logits = load_module(folder, digits_resnet_signature())(torch.from_numpy(held_out.arrays["pixel_values"]))
    assert held_out.labels is not None
    return float((logits.argmax(1).numpy() == held_out.labels).mean())


def prune_resnet(resnet: Path, root: Path, **parameters: Any) -> tuple[Path, Any]:
    return apply("prune", resnet, digits_resnet_signature(), root, training=digits("train", 600), **parameters)


def test_recovery_brings_back_what_the_cut_cost(resnet: Path, tmp_path: Path) -> None:
    recovery = {"epochs": 6, "learning_rate": 5e-3, "validation_share": 0.1}
    cut, bare = prune_resnet(resnet, tmp_path / "cut", channels=0.5, recovery=None)
    healed, outcome = prune_resnet(resnet, tmp_path / "healed", channels=0.5, recovery=recovery)
    assert accuracy(cut) < accuracy(resnet) - 0.1
    assert accuracy(healed) > accuracy(cut) + 0.1
    assert "Nothing was trained" in bare.notes["remark"]
    assert [row["stopped"] for row in outcome.notes["recovery"]]
    assert outcome.notes["curves"]
    assert outcome.notes["macs_after"] < 0.5 * outcome.notes["macs_before"]


def test_iterations_end_where_one_shot_does(resnet: Path, tmp_path: Path) -> None:
    _, once = prune_resnet(resnet, tmp_path / "once", channels=0.6, recovery=None)
    _, thrice = prune_resnet(resnet, tmp_path / "thrice", channels=0.6, recovery=SHORT, iterations=3)
    assert [row["after"] for row in thrice.notes["cuts"]] == [row["after"] for row in once.notes["cuts"]]
    assert thrice.notes["parameters_after"] == once.notes["parameters_after"]
    assert [row["iteration"] for row in thrice.notes["recovery"]] == [1, 2, 3]


def test_taylor_chooses_other_channels_than_norms_do(resnet: Path, tmp_path: Path) -> None:
    found = {
        name: prune_resnet(resnet, tmp_path / name, channels=0.5, recovery=None, importance=name)[1] for name in ("l1", "l2", "taylor")
    }
    kept = {name: outcome.notes["kept"] for name, outcome in found.items()}
    assert kept["taylor"] != kept["l1"]
    assert kept["taylor"] != kept["l2"]
    _, again = prune_resnet(resnet, tmp_path / "again", channels=0.5, recovery=None, importance="taylor")
    assert again.notes == found["taylor"].notes


def test_a_pruned_convolutional_net_exports(resnet: Path, tmp_path: Path) -> None:
    pruned, outcome = prune_resnet(resnet, tmp_path / "prune", recovery=None)  # a quarter of the channels unless told otherwise
    exported, exported_outcome = apply("export_onnx", pruned, outcome.signature, tmp_path / "export")
    images = digits("evaluation", 7).arrays
    with torch.inference_mode():
        wanted = load_module(pruned, outcome.signature)(torch.from_numpy(images["pixel_values"]))
    backend = backends.load(exported, exported_outcome.signature, threads=1)
    np.testing.assert_allclose(backend.run(images, ["logits"])["logits"], wanted.numpy(), atol=1e-4)
    backend.close()


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shallow_minilm(tmp_path_factory.mktemp("minilm") / "model", layers=2)


def test_an_encoder_by_taylor_uploads_and_exports_as_it_is(minilm: Path, tmp_path: Path) -> None:
    texts = Examples(texts=tuple(sentences(24, seed=0)))
    asked = {"heads": 0.5, "ffn": 0.25, "hidden": 0.25, "layers": 1, "scope": "global", "importance": "taylor", "recovery": None}
    pruned, outcome = apply("prune", minilm, minilm_signature(), tmp_path / "prune", training=texts, **asked)
    assert outcome.signature.outputs[0].shape == (-1, 288)
    assert inspect_folder(pruned).outputs == outcome.signature.outputs
    exported, exported_outcome = apply("export_onnx", pruned, outcome.signature, tmp_path / "export")
    ids = np.array([[101, 2023, 2003, 102], [101, 102, 0, 0]], np.int64)
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    engines = [backends.load(*place, threads=1) for place in [(pruned, outcome.signature), (exported, exported_outcome.signature)]]
    first, second = (engine.run(inputs, ["embedding"])["embedding"] for engine in engines)
    np.testing.assert_allclose(first, second, atol=1e-4)
    assert set(outcome.notes["sensitivity"]) == {f"{row['place']} {row['kind']}" for row in outcome.notes["cuts"]}
    assert {row["kind"]: row["after"] for row in outcome.notes["cuts"]} == {"layers": 1, "heads": 6, "ffn": 1152, "hidden": 288}


def test_bfloat16_stays_what_it_is(minilm: Path, tmp_path: Path) -> None:
    half, halved = apply("bf16", minilm, minilm_signature(), tmp_path / "bf16")
    pruned, outcome = apply("prune", half, halved.signature, tmp_path / "prune", heads=0.5, recovery=None)
    module = load_module(pruned, outcome.signature)
    assert {value.dtype for value in module.parameters()} == {torch.bfloat16}


def test_multiply_accumulates_by_hand(tmp_path: Path) -> None:
    folder, signature = build("bert-embedding", tmp_path / "bert")
    per_token = 4 * 32 * 32 + 2 * 32 * 64
    assert count_macs(load_module(folder, signature).model, signature) == 3 * (128 * per_token + 2 * 128 * 128 * 32) + 32 * 32


# Refusals


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"heads": 1.0}, "heads"),
        ({"ffn": -0.1}, "ffn"),
        ({"heads": 0, "ffn": 0}, "all 0: nothing would be pruned"),
        ({"layers": 1.5}, "1.5 is neither a count nor a share"),
        ({"heads": 0.5, "iterations": 2, "recovery": None}, "several cuts without a recovery"),
        ({"heads": 0.5, "importance": "random"}, "importance"),
        ({"head": 0.5}, "head"),
    ],
)
def test_parameters_at_fault_are_named(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        find("prune").parameters.model_validate(parameters)


@pytest.mark.parametrize(
    ("family", "parameters", "said"),
    [
        ("bert", {"heads": 0.9}, "heads: 0.9 leaves none of the 4 in bert.encoder.layer.0; one at least has to stay"),
        ("bert", {"layers": 3}, "layers: 3 leaves none of the 3 in bert.encoder.layer"),
        ("vit", {"layers": 0.99}, "layers: 0.99 leaves none of the 3"),
        ("resnet", {"channels": 0.99}, "channels: 0.99 leaves none of the 32"),
        ("bert", {"channels": 0.5}, "channels: a bert model has no convolutions"),
        ("resnet", {"heads": 0.5}, "heads: a resnet model is none of bert, "),
        ("albert", {"ffn": 0.5}, "ffn: a albert model is none of"),
        ("albert", {}, "channels: a albert model has none"),
    ],
)
def test_what_a_model_cannot_lose_is_told(tmp_path: Path, family: str, parameters: dict[str, Any], said: str) -> None:
    folder, signature = build(family, tmp_path / "model")
    with pytest.raises(UnsupportedOperator, match=said):
        apply("prune", folder, signature, tmp_path / "prune", recovery=None, **parameters)


def test_taylor_without_examples(tmp_path: Path) -> None:
    folder, signature = build("bert", tmp_path / "model")
    with pytest.raises(NotEnoughData, match="taylor needs training examples"):
        apply("prune", folder, signature, tmp_path / "prune", heads=0.5, recovery=None, importance="taylor")


def test_a_broken_source(tmp_path: Path) -> None:
    folder, signature = build("bert", tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadModel, match=r"model\.safetensors"):
        apply("prune", folder, signature, tmp_path / "prune", heads=0.5, recovery=None)


def test_what_it_needs_is_told_by_its_parameters() -> None:
    parameters = find("prune").parameters
    assert parameters().uses_training()
    assert not parameters.model_validate({"heads": 0.5, "recovery": None}).uses_training()
    assert parameters.model_validate({"heads": 0.5, "recovery": None, "importance": "taylor"}).uses_training()
