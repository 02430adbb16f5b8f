"""Where transformers keep their heads and feed-forward neurons: one row per way of naming modules."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Pattern:
    """Paths below the transformer (`layers`) and below a layer (the others). Several inputs of one kind are cut alike."""

    layers: str
    attention: str  # the module that counts heads
    projections: tuple[str, ...]  # queries, keys, values, or all three in one
    attended: str  # what takes the heads' answers
    rising: tuple[str, ...]  # into the feed-forward neurons
    falling: str  # out of them
    head_counts: tuple[str, ...] = ("num_attention_heads",)  # attributes of `attention`
    head_widths: tuple[str, ...] = ()  # attributes that are heads * their width
    neurons: str = "intermediate_size"  # of the config
    outer: tuple[str, ...] = ()  # layers beside the stack that are as wide as it and lead to nothing else; paths from the model


_BERT = Pattern(
    layers="encoder.layer",
    attention="attention.self",
    projections=("attention.self.query", "attention.self.key", "attention.self.value"),
    attended="attention.output.dense",
    rising=("intermediate.dense",),
    falling="output.dense",
    head_widths=("all_head_size",),
    outer=("pooler.dense", "bert.pooler.dense", "classifier.dense"),
)
_DISTILBERT = Pattern(
    layers="transformer.layer",
    attention="attention",
    projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attended="attention.out_lin",
    rising=("ffn.lin1",),
    falling="ffn.lin2",
    head_counts=("n_heads",),
    neurons="hidden_dim",
    outer=("pre_classifier",),
)
_VIT = Pattern(
    layers="layers",
    attention="attention",
    projections=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    attended="attention.o_proj",
    rising=("mlp.fc1",),
    falling="mlp.fc2",
)
_GPT2 = Pattern(
    layers="h",
    attention="attn",
    projections=("attn.c_attn",),
    attended="attn.c_proj",
    rising=("mlp.c_fc",),
    falling="mlp.c_proj",
    head_counts=("num_heads",),
    head_widths=("split_size",),
    neurons="n_inner",
)
_LLAMA = Pattern(
    layers="layers",
    attention="self_attn",
    projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attended="self_attn.o_proj",
    rising=("mlp.gate_proj", "mlp.up_proj"),
    falling="mlp.down_proj",
    head_counts=(),
)
PATTERNS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT),
    "distilbert": _DISTILBERT,
    **dict.fromkeys(("vit", "deit"), _VIT),
    "gpt2": _GPT2,
    "llama": _LLAMA,
}


@dataclass(frozen=True)
class Layer:
    """One transformer layer, its modules found. `place` is its path in the model."""

    place: str
    module: nn.Module
    pattern: Pattern

    def linear(self, path: str) -> nn.Linear:
        found = self.module.get_submodule(path)
        if not isinstance(found, nn.Linear):
            raise TypeError(f"{self.place}.{path} is a {type(found).__name__}")
        return found

    @property
    def attention(self) -> nn.Module:
        return self.module.get_submodule(self.pattern.attention)

    @property
    def head_width(self) -> int:
        found: int = getattr(self.attention, "attention_head_size", None) or self.attention.head_dim  # type: ignore[assignment]
        return found

    @property
    def heads(self) -> int:
        """What can be cut one by one: heads, or groups of them that share keys and values. Told by the weights."""
        return self.linear(self.pattern.attended).in_features // self.head_width // self._group

    @property
    def _group(self) -> int:
        return int(getattr(self.attention, "num_key_value_groups", 1))

    @property
    def head_rows(self) -> int:
        """Rows of the answers that one of `heads` makes."""
        return self.head_width * self._group

    @property
    def neurons(self) -> int:
        return self.linear(self.pattern.falling).in_features


class Layout:
    """The stack of layers in a transformers model, looked at anew at every question, since surgery changes it."""

    def __init__(self, model: Any, pattern: Pattern) -> None:
        self._model = model
        self.pattern = pattern

    @property
    def stack(self) -> nn.ModuleList:
        found = self._model.base_model.get_submodule(self.pattern.layers)
        if not isinstance(found, nn.ModuleList):
            raise TypeError(f"{self.pattern.layers} is a {type(found).__name__}")
        return found

    @property
    def place(self) -> str:
        prefix = "" if self._model.base_model is self._model else f"{self._model.base_model_prefix}."
        return prefix + self.pattern.layers

    @property
    def layers(self) -> list[Layer]:
        return [Layer(f"{self.place}.{index}", module, self.pattern) for index, module in enumerate(self.stack)]

    @property
    def hidden(self) -> int:
        return self.layers[0].linear(self.pattern.falling).out_features


def layout_of(model: Any) -> Layout | None:
    """None for a model whose modules no pattern names. Raises LookupError where one should and does not."""
    pattern = PATTERNS.get(model.config.model_type)
    if pattern is None:
        return None
    layout = Layout(model, pattern)
    with plain_linears(model):
        for layer in layout.layers:
            for path in (*pattern.projections, pattern.attended, *pattern.rising, pattern.falling):
                _require(layer, path)
    return layout


def _require(layer: Layer, path: str) -> None:
    try:
        layer.linear(path)
    except (AttributeError, TypeError) as error:
        raise LookupError(f"{layer.place} has no linear layer {path}") from error


@contextlib.contextmanager
def plain_linears(model: nn.Module) -> Iterator[None]:
    """GPT-2's transposed `Conv1D` is nn.Linear inside the block: one kind of layer to score and to cut."""
    swapped = set()
    for path, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = _as_linear(module)
            swapped.add(linear)
            _put(model, path, linear)
    try:
        yield
    finally:  # by what they are: surgery on layers moves their paths
        for path, module in list(model.named_modules()):
            if module in swapped:
                _put(model, path, _as_conv1d(module))


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent).add_module(name, module)


def _as_linear(module: Any) -> nn.Linear:
    linear = nn.Linear(module.nx, module.nf, device="meta")
    linear.weight = nn.Parameter(module.weight.detach().T.contiguous())
    linear.bias = module.bias
    return linear.train(module.training)


def _as_conv1d(module: Any) -> nn.Module:
    with torch.device("meta"):
        transposed = Conv1D(module.out_features, module.in_features)
    transposed.weight = nn.Parameter(module.weight.detach().T.contiguous())
    transposed.bias = module.bias
    found: nn.Module = transposed.train(module.training)
    return found
