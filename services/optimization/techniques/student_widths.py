"""Smaller widths from a trained model's weights: what to keep of each width, and the model rebuilt around it.

Kept is what carries the largest weights, as structured pruning by magnitude does (Li et al. 2017, arXiv 1608.08710).
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from services.optimization.failures import UnsupportedOperator
from services.optimization.training.anatomy import Anatomy, Width, anatomy_of, find_layers


@dataclass(frozen=True)
class Sizes:
    hidden: int
    heads: int
    feed_forward: int

    @property
    def head_width(self) -> int:
        return self.hidden // self.heads


def narrow(module: Any, hidden_size: int | None, heads: int | None, intermediate_size: int | None) -> dict[str, Any]:
    """Replaces `module.model` by one of the given sizes with the most important of its weights; None keeps a size.

    Raises UnsupportedOperator for a model whose parts are not known and for sizes that it cannot have.
    """
    model = module.model
    anatomy = anatomy_of(model)
    old = _sizes(model, anatomy)
    new = Sizes(hidden_size or old.hidden, heads or old.heads, intermediate_size or old.feed_forward)
    check(old, new)
    module.model = _Narrowing(model, anatomy, old, new).rebuild()
    return {"hidden_size": new.hidden, "heads": new.heads, "intermediate_size": new.feed_forward}


def check(old: Sizes, new: Sizes) -> None:
    """Raises UnsupportedOperator naming the parameter at fault."""
    for name, has, wants in (
        ("hidden_size", old.hidden, new.hidden),
        ("heads", old.heads, new.heads),
        ("intermediate_size", old.feed_forward, new.feed_forward),
    ):
        if wants > has:
            raise UnsupportedOperator(f"{name}: the source has {has}; a student cannot have {wants}")
    if new.hidden % new.heads:
        raise UnsupportedOperator(f"heads: {new.heads} do not divide the hidden size {new.hidden}, as the config has to express")


def strongest(energy: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest values [n], ascending."""
    return energy.topk(count).indices.sort().values


def attention_positions(energy: Tensor, old: Sizes, new: Sizes) -> Tensor:
    """Which of a layer's attention dimensions [old.hidden] stay, head by head of the new model.

    Heads that stay as wide or shrink: the strongest heads, of each its strongest dimensions. Where fewer heads become wider,
    whole heads are laid end to end and cut anew: a score is a sum over dimensions, so a wide head adds up what several saw.
    """
    by_head = energy.view(old.heads, old.head_width)
    starts = torch.arange(old.heads)[:, None] * old.head_width
    if new.head_width <= old.head_width:
        kept = strongest(by_head.sum(1), new.heads)
        inside = torch.stack([strongest(by_head[head], new.head_width) for head in kept])
        return (starts[kept] + inside).flatten()
    kept = strongest(by_head.sum(1), math.ceil(new.hidden / old.head_width))
    candidates = (starts[kept] + torch.arange(old.head_width)).flatten()
    return candidates[strongest(energy[candidates], new.hidden)]


def _sizes(model: Any, anatomy: Anatomy) -> Sizes:
    """As the model has them, whatever its config leaves to a default."""
    layer = find_layers(model)[0]
    width = next(
        weight.shape[axes.index(Width.FEED_FORWARD)]
        for name, weight in layer.named_parameters()
        if Width.FEED_FORWARD in (axes := anatomy.widths(name, weight))
    )
    return Sizes(int(model.config.hidden_size), int(model.config.num_attention_heads), int(width))


def _along(weight: Tensor, axis: int) -> Tensor:
    """The share of a weight's energy at each position of an axis: every weight counts the same, however large it is."""
    energy = weight.detach().double().square().movedim(axis, 0).flatten(1).sum(1) if weight.ndim > 1 else weight.detach().double().square()
    return energy / energy.sum().clamp(min=1e-300)


class _Narrowing:
    def __init__(self, model: Any, anatomy: Anatomy, old: Sizes, new: Sizes) -> None:
        self._model = model
        self._anatomy = anatomy
        self._old = old
        self._new = new
        layers = find_layers(model)
        place = next(path for path, part in model.named_modules() if part is layers)
        self._prefixes = [f"{place}.{index}." for index in range(len(layers))]

    def rebuild(self) -> nn.Module:
        stream = strongest(self._stream_energy(), self._new.hidden)
        weights = {}
        inner = [self._kept_inside(prefix) for prefix in self._prefixes]
        buffers = {name for name, _ in self._model.named_buffers()}
        for name, weight in self._model.state_dict().items():
            if name in buffers:
                weights[name] = weight
                continue
            layer = next((index for index, prefix in enumerate(self._prefixes) if name.startswith(prefix)), None)
            weights[name] = self._slice(name, weight, {Width.HIDDEN: stream} | (inner[layer] if layer is not None else {}))
        rebuilt: Any = type(self._model)(self._config())
        rebuilt.load_state_dict(weights)
        rebuilt.tie_weights()
        made: nn.Module = rebuilt.eval()
        return made

    def _config(self) -> Any:
        config = copy.deepcopy(self._model.config)
        config.hidden_size, config.num_attention_heads = self._new.hidden, self._new.heads
        setattr(config, self._anatomy.feed_forward_size, self._new.feed_forward)
        return config

    def _stream_energy(self) -> Tensor:
        """The same dimensions everywhere: what one layer writes to the stream, others read."""
        total = torch.zeros(self._old.hidden, dtype=torch.float64)
        for name, weight in self._model.named_parameters():
            for axis, width in enumerate(self._anatomy.widths(name, weight)):
                if width is Width.HIDDEN:
                    total += _along(weight, axis)
        return total

    def _kept_inside(self, prefix: str) -> dict[Width, Tensor]:
        """Of a layer's own widths."""
        attention = torch.zeros(self._old.hidden, dtype=torch.float64)
        neurons = torch.ones(self._old.feed_forward, dtype=torch.float64)
        for name, weight in self._model.named_parameters():
            if not name.startswith(prefix) or weight.ndim < 2:
                continue
            for axis, width in enumerate(self._anatomy.widths(name, weight)):
                if width in (Width.ATTENTION, Width.FUSED):
                    attention += _along(weight, axis).view(-1, self._old.hidden).sum(0)
                elif width is Width.FEED_FORWARD:  # what comes in times what goes out: either being nothing makes it nothing
                    neurons *= _along(weight, axis).sqrt()
        kept = attention_positions(attention, self._old, self._new)
        fused = torch.cat([kept + part * self._old.hidden for part in range(3)])
        return {Width.ATTENTION: kept, Width.FUSED: fused, Width.FEED_FORWARD: strongest(neurons, self._new.feed_forward)}

    def _slice(self, name: str, weight: Tensor, kept: Mapping[Width, Tensor]) -> Tensor:
        for axis, width in enumerate(self._anatomy.widths(name, weight)):
            if width is not Width.OTHER:
                weight = weight.index_select(axis, kept[width])
        return weight
