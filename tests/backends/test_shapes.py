"""Pruned models reload as they were; what shapes.json and weights may not be is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from services.backends import LoadError, shapes
from services.backends.torch import load_module
from services.optimization.techniques.pruning import surgery
from services.optimization.techniques.pruning.layout import layout_of
from services.optimization.techniques.saving import save
from services.repository.manifest import Format, Signature, Task, TensorSpec

_INPUTS = tuple(TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in ("input_ids", "attention_mask"))
QUERY = "encoder.layer.0.attention.self.query"


def signature(task: Task = Task.EMBEDDING) -> Signature:
    output = TensorSpec(name="embedding", datatype="FP32", shape=(-1, 32))
    return Signature(task=task, format=Format.HUGGINGFACE, inputs=_INPUTS, outputs=(output,), pad_token_id=0)


def plain_bert(folder: Path) -> Path:
    """Four heads of width 8, random."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(folder)
    return folder


def pruned_module(folder: Path) -> Any:
    """The first layer keeps two of its heads."""
    module = load_module(plain_bert(folder), signature())
    layout = layout_of(module.model)
    assert layout is not None
    surgery.heads(layout)[0].cut(torch.tensor([0, 2]))
    return module


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    module = pruned_module(tmp_path / "plain")
    (tmp_path / "pruned").mkdir()
    save(module, tmp_path / "plain", tmp_path / "pruned", signature())
    return tmp_path / "pruned"


def rows(tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(50, (3, tokens), generator=torch.Generator().manual_seed(tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_a_pruned_model_reloads_exactly(tmp_path: Path) -> None:
    module = pruned_module(tmp_path / "plain")
    (tmp_path / "pruned").mkdir()
    save(module, tmp_path / "plain", tmp_path / "pruned", signature())
    loaded = load_module(tmp_path / "pruned", signature())
    assert not loaded.training
    with torch.inference_mode():
        for tokens in (1, 5, 33):
            assert float((loaded(**rows(tokens)) - module(**rows(tokens))).abs().max()) == 0.0


def test_a_model_that_its_config_describes_has_no_shapes(tmp_path: Path) -> None:
    module = load_module(plain_bert(tmp_path / "plain"), signature())
    assert shapes.describe(module.model) == {}
    (tmp_path / "saved").mkdir()
    save(module, tmp_path / "plain", tmp_path / "saved", signature())
    assert not shapes.has_shapes(tmp_path / "saved")


def test_the_file_holds_what_differs_and_nothing_else(pruned: Path) -> None:
    shapes.check(pruned)
    content = json.loads((pruned / "shapes.json").read_text())
    assert content["version"] == 1
    assert content["attributes"] == {
        "encoder.layer.0.attention.self": {"all_head_size": 16, "num_attention_heads": 2},
        QUERY: {"out_features": 16},
        "encoder.layer.0.attention.self.key": {"out_features": 16},
        "encoder.layer.0.attention.self.value": {"out_features": 16},
        "encoder.layer.0.attention.output.dense": {"in_features": 16},
    }


def test_a_pooler_that_the_source_lacks_is_not_invented(tmp_path: Path) -> None:
    source = plain_bert(tmp_path / "plain")
    weights = load_file(source / "model.safetensors")
    save_file({name: value for name, value in weights.items() if not name.startswith("pooler.")}, source / "model.safetensors")
    module = load_module(source, signature())
    layout = layout_of(module.model)
    assert layout is not None
    surgery.heads(layout)[0].cut(torch.tensor([1]))
    (tmp_path / "pruned").mkdir()
    save(module, source, tmp_path / "pruned", signature())
    assert not any(name.startswith("pooler.") for name in load_file(tmp_path / "pruned" / "model.safetensors"))
    load_module(tmp_path / "pruned", signature())


def attributes(content: Any) -> str:
    return json.dumps({"version": 1, "attributes": content})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "is expected"),
        ('{"version": 2, "attributes": {}}', "is expected"),
        ('{"version": 1, "attributes": {}, "code": "x"}', "is expected"),
        ('{"version": 1, "version": 1, "attributes": {}}', "occurs twice"),
        ('{"version": 1, "attributes": []}', "not an object"),
        (attributes({"../x": {}}), "no path of a module"),
        (attributes({"a.b" * 40: {}}), "no path of a module"),
        (attributes({"a.__class__": 1}), "not an object"),
        (attributes({"a": {"forward": 1}}), "'forward' = 1"),
        (attributes({"a": {"__class__": 1}}), "no attribute that pruning changes"),
        (attributes({"a": {"in_features": 0}}), "in_features"),
        (attributes({"a": {"in_features": -1}}), "in_features"),
        (attributes({"a": {"in_features": 1 << 25}}), "in_features"),
        (attributes({"a": {"in_features": True}}), "in_features"),
        (attributes({"a": {"in_features": 1.5}}), "in_features"),
        (attributes({"a": {"in_features": "16"}}), "in_features"),
        (attributes({"a": {"normalized_shape": [1] * 9}}), "normalized_shape"),
        (attributes({"a": {"normalized_shape": []}}), "normalized_shape"),
        (attributes({"a": {"scaling": 0.0}}), "scaling"),
        ('{"version": 1, "attributes": {"a": {"scaling": Infinity}}}', "not JSON: Infinity"),
        ('{"version": 1, "attributes": {"a": {"scaling": 1e999}}}', "scaling"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_the_file_may_not_hold(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "shapes.json").write_text(content)
    with pytest.raises(LoadError, match=said.replace("[", r"\[")):
        shapes.check(tmp_path)


def test_a_file_beyond_its_bound_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "shapes.json").write_text(" " * (shapes.MAX_BYTES + 1))
    with pytest.raises(LoadError, match="larger than"):
        shapes.check(tmp_path)


Weights = dict[str, torch.Tensor]


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: change(weights[name]).contiguous()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without(f"{QUERY}.bias"), f"the weight '{QUERY}.bias', which config.json asks for, is missing"),
        (lambda weights: weights | {"extra": torch.zeros(1)}, "no place for the weight 'extra'"),
        (changed(f"{QUERY}.weight", lambda value: value * float("nan")), f"'{QUERY}.weight' holds values that are not finite"),
        (changed(f"{QUERY}.weight", lambda value: value[:8]), rf"{QUERY}.weight has the shape \[8, 32\]; its module asks for \[16, 32\]"),
        (changed(f"{QUERY}.weight", lambda value: value[None]), rf"'{QUERY}.weight' is float32 \[1, 16, 32\]"),
        (changed(f"{QUERY}.weight", lambda value: value.half()), f"'{QUERY}.weight' is float16"),
        (changed("embeddings.LayerNorm.weight", lambda value: value[:16]), r"LayerNorm.weight has the shape \[16\]"),
    ],
)
def test_a_weight_at_fault_is_named(pruned: Path, change: Callable[[Weights], Weights], said: str) -> None:
    path = pruned / "model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(LoadError, match=said):
        load_module(pruned, signature())


@pytest.mark.parametrize(
    ("path", "values", "said"),
    [
        ("encoder.layer.7", {"dim": 3}, "config.json builds no module encoder.layer.7"),
        (QUERY, {"out_channels": 3}, "a Linear has no out_channels like 3"),
        (QUERY, {"out_features": [3]}, "a Linear has no out_features"),
        ("embeddings.LayerNorm", {"normalized_shape": [4, 8]}, "a LayerNorm has no normalized_shape"),
        (QUERY, {"out_features": 24}, r"has the shape \[16, 32\]; its module asks for \[24, 32\]"),
        ("encoder.layer.0.attention.self", {"attention_head_size": 7}, "modules do not fit each other"),
    ],
)
def test_an_attribute_at_fault_is_named(pruned: Path, path: str, values: dict[str, Any], said: str) -> None:
    file = pruned / "shapes.json"
    content = json.loads(file.read_text())
    content["attributes"].setdefault(path, {}).update(values)
    file.write_text(json.dumps(content))
    with pytest.raises(LoadError, match=said):
        load_module(pruned, signature())


def test_a_weight_that_two_modules_share_is_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_head": 4, "n_layer": 1, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "shapes.json").write_text('{"version": 1, "attributes": {}}')
    model = load_module(tmp_path / "plain", signature(Task.CAUSAL_LM)).model
    assert model.lm_head.weight is model.transformer.wte.weight
    path = tmp_path / "plain" / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"lm_head.weight": weights["transformer.wte.weight"].clone()}, path)
    with pytest.raises(LoadError, match="are one weight"):
        load_module(tmp_path / "plain", signature(Task.CAUSAL_LM))
