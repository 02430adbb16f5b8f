"""What holds for every model and every ratio: counts as asked, shapes that fit, an exact reload, the same function minus its parts."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.backends.torch import load_module
from services.optimization.techniques.pruning import surgery
from services.optimization.techniques.pruning.dependencies import Dependencies
from services.optimization.techniques.pruning.layout import Layout, layout_of, plain_linears
from services.optimization.techniques.pruning.parts import Parts
from services.repository.manifest import Task
from tests.applied import apply
from tests.optimization.techniques.random_models import FAMILIES, TRANSFORMERS, build, inputs

SIZES = (1, 4, 19)
RATIOS = st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.7])


def answer(module: Any, *arguments: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = module(**inputs(*arguments))
    return found


def known_layout(model: Any) -> Layout:
    layout = layout_of(model)
    assert layout is not None
    return layout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("sources")
    return {family: build(family, root / family) for family in FAMILIES}


def expected(ratio: float, count: int, multiple: int) -> int:
    removed = round(ratio * count)
    return count if not removed else max(multiple, multiple * round((count - removed) / multiple))


@pytest.mark.parametrize("family", TRANSFORMERS)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(heads=RATIOS, ffn=RATIOS, hidden=RATIOS, layers=st.sampled_from([0, 1, 2, 0.4]), scope=st.sampled_from(["per_layer", "global"]))
def test_any_ratios_leave_a_smaller_model_that_reloads(
    sources: dict[str, Any], family: str, heads: float, ffn: float, hidden: float, layers: float, scope: str
) -> None:
    folder, signature = sources[family]
    asked = {"heads": heads, "ffn": ffn, "hidden": hidden, "layers": layers}
    if not any(asked.values()):
        asked["ffn"] = ffn = 0.5
    with tempfile.TemporaryDirectory() as root:
        target, outcome = apply("prune", folder, signature, Path(root) / "prune", recovery=None, scope=scope, **asked)
        pruned, again = (load_module(target, outcome.signature) for _ in range(2))
        kept_layers = 3 - (int(layers) if layers >= 1 else round(3 * layers))
        with plain_linears(pruned.model):
            layout = known_layout(pruned.model)
            assert len(layout.stack) == kept_layers
            assert sum(layer.heads for layer in layout.layers) == kept_layers * expected(heads, 4, 1)
            assert sum(layer.neurons for layer in layout.layers) == kept_layers * expected(ffn, 64, 8)
            assert layout.hidden == expected(hidden, 32, 8)
        for size in SIZES:
            answers = answer(pruned, signature, size)
            assert torch.isfinite(answers).all()
            assert torch.equal(answers, answer(again, signature, size))
    rows = outcome.notes["cuts"]
    assert outcome.notes["parameters_after"] == sum(value.numel() for value in pruned.model.parameters())
    assert (outcome.notes["parameters_after"] < outcome.notes["parameters_before"]) == any(row["after"] < row["before"] for row in rows)
    if signature.task is Task.EMBEDDING:
        assert outcome.signature.outputs[0].shape == (-1, expected(hidden, 32, 8))


def silence(parts: Parts, gone: list[int], dim: int) -> None:
    """Zeros the weights of some parts along `dim`: 1 is what reads them, 0 what makes them."""
    with torch.no_grad():
        for piece in parts.slices:
            if piece.dim == dim:
                piece.parameter.movedim(piece.dim, 0)[piece.positions[gone].flatten()] = 0


@pytest.mark.parametrize("kind", ["heads", "ffn"])
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_cutting_is_never_hearing_a_part(sources: dict[str, Any], family: str, kind: str) -> None:
    folder, signature = sources[family]
    cut, silenced = (load_module(folder, signature) for _ in range(2))
    keep = {"heads": [1, 3], "ffn": [*range(5, 40)]}[kind]
    for module in (cut, silenced):
        with plain_linears(module.model):
            parts = (surgery.heads if kind == "heads" else surgery.neurons)(known_layout(module.model))[1]
            if module is cut:
                parts.cut(torch.tensor(keep))
            else:
                silence(parts, [position for position in range(parts.count) if position not in keep], dim=1)
    for size in SIZES:
        torch.testing.assert_close(answer(cut, signature, size), answer(silenced, signature, size))
    assert not torch.allclose(answer(cut, signature, 4), answer(load_module(folder, signature), signature, 4))


def test_cutting_a_channel_is_never_making_it(sources: dict[str, Any]) -> None:
    folder, signature = sources["resnet"]
    cut, silenced = (load_module(folder, signature) for _ in range(2))
    places = [Dependencies(module.model, signature).channels() for module in (cut, silenced)]
    assert sorted(parts.count for parts in places[0]) == [16, 16, 32, 32, 32]  # residual sums join the others
    for cut_parts, silenced_parts in zip(*places, strict=True):
        keep = [*range(3, silenced_parts.count - 2)]
        cut_parts.cut(torch.tensor(keep))
        silence(silenced_parts, [position for position in range(silenced_parts.count) if position not in keep], dim=0)
    torch.testing.assert_close(answer(cut, signature, 5), answer(silenced, signature, 5))


def test_dropped_layers_are_stepped_over(sources: dict[str, Any]) -> None:
    folder, signature = sources["bert-embedding"]
    cut, whole = (load_module(folder, signature) for _ in range(2))
    surgery.layers(known_layout(cut.model)).cut(torch.tensor([0, 2]))
    whole.model.encoder.layer[1].forward = lambda hidden, *_, **__: hidden
    torch.testing.assert_close(answer(cut, signature, 7), answer(whole, signature, 7))


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_a_ratio_near_zero_changes_nothing(sources: dict[str, Any], tmp_path: Path, family: str) -> None:
    folder, signature = sources[family]
    ratios = dict.fromkeys(("heads", "ffn", "hidden", "layers"), 0.001)
    target, outcome = apply("prune", folder, signature, tmp_path / "prune", recovery=None, **ratios)
    assert not (target / "shapes.json").exists()
    assert outcome.notes["parameters_after"] == outcome.notes["parameters_before"]
    original, pruned = load_module(folder, signature), load_module(target, signature)
    assert torch.equal(answer(original, signature, 6), answer(pruned, signature, 6))


def test_what_a_config_can_tell_needs_no_shapes(sources: dict[str, Any], tmp_path: Path) -> None:
    folder, signature = sources["bert"]
    target, _ = apply("prune", folder, signature, tmp_path / "prune", recovery=None, heads=0.5, hidden=0.5, ffn=0.5, layers=1)
    assert not (target / "shapes.json").exists()  # two heads of width 8 in 16 positions
