"""Cutting heads, feed-forward neurons and whole layers out of a transformer, and telling its config."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from services.optimization.techniques.pruning.layout import Layer, Layout
from services.optimization.techniques.pruning.parts import Parts, Slice


def heads(layout: Layout) -> list[Parts]:
    """The heads of each layer (groups of them where keys and values are shared), with the rows and columns that are theirs."""
    found = []
    for layer in layout.layers:
        columns = _columns(layer.linear(layout.pattern.attended), layer.heads)
        found.append(Parts("heads", layer.place, layer.heads, partial(_cut_heads, layer), (*_head_rows(layer), *columns)))
    return found


def neurons(layout: Layout) -> list[Parts]:
    """The feed-forward neurons of each layer."""
    found = []
    for layer in layout.layers:
        rows = [piece for path in layout.pattern.rising for piece in _rows(layer.linear(path), layer.neurons)]
        columns = _columns(layer.linear(layout.pattern.falling), layer.neurons)
        found.append(Parts("ffn", layer.place, layer.neurons, partial(_cut_neurons, layer), (*rows, *columns)))
    return found


def layers(layout: Layout) -> Parts:
    return Parts("layers", layout.place, len(layout.stack), partial(_cut_layers, layout), wholes=tuple(layout.stack))


def _spread(parts: int, width: int, start: int = 0) -> Tensor:
    """[parts, width]: neighbours belong together."""
    return torch.arange(start, start + parts * width).view(parts, width)


def _side(linear: nn.Linear, positions: Tensor) -> list[Slice]:
    weight = Slice(linear, "weight", 0, positions)
    return [weight] if linear.bias is None else [weight, Slice(linear, "bias", 0, positions)]


def _rows(linear: nn.Linear, parts: int) -> list[Slice]:
    return _side(linear, _spread(parts, linear.out_features // parts))


def _columns(linear: nn.Linear, parts: int) -> list[Slice]:
    return [Slice(linear, "weight", 1, _spread(parts, linear.in_features // parts))]


def _fused(layer: Layer) -> int:
    """How many of queries, keys and values lie below one another in one projection."""
    return 3 // len(layer.pattern.projections)


def _head_rows(layer: Layer) -> list[Slice]:
    found = []
    for path in layer.pattern.projections:
        linear = layer.linear(path)
        found += _side(linear, _fused_positions(layer, linear))
    return found


def _fused_positions(layer: Layer, linear: nn.Linear) -> Tensor:
    """[heads, rows of one head in all that is fused]."""
    fused, parts = _fused(layer), layer.heads
    width = linear.out_features // fused // parts
    return torch.cat([_spread(parts, width, block * parts * width) for block in range(fused)], dim=1)


def _keep(linear: nn.Linear, positions: Tensor, dim: int) -> None:
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, positions).contiguous())
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[positions].clone())
    linear.out_features, linear.in_features = linear.weight.shape


def _cut_heads(layer: Layer, keep: Tensor) -> None:
    attended = layer.linear(layer.pattern.attended)
    columns = _spread(layer.heads, layer.head_rows)[keep].flatten()
    # The rows of a fused projection stay in their order: all queries, then all keys, then all values.
    rows = [_fused_positions(layer, layer.linear(path))[keep].flatten().sort().values for path in layer.pattern.projections]
    for path, positions in zip(layer.pattern.projections, rows, strict=True):
        _keep(layer.linear(path), positions, 0)
    _keep(attended, columns, 1)
    attention = layer.attention
    for name in layer.pattern.head_counts:
        setattr(attention, name, len(keep))
    for name in layer.pattern.head_widths:
        setattr(attention, name, attended.in_features)


def _cut_neurons(layer: Layer, keep: Tensor) -> None:
    for path in layer.pattern.rising:
        _keep(layer.linear(path), keep, 0)
    _keep(layer.linear(layer.pattern.falling), keep, 1)
    for module in layer.module.modules():
        if "intermediate_size" in vars(module):
            module.intermediate_size = len(keep)  # type: ignore[assignment]


def _cut_layers(layout: Layout, keep: Tensor) -> None:
    stack = layout.stack
    kept = [stack[index] for index in keep.tolist()]
    del stack[len(kept) :]
    for index, layer in enumerate(kept):
        stack[index] = layer
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index


def write_config(layout: Layout, config: Any) -> None:
    """Tells the config what it can express: layers, hidden size, and the others where all layers are alike.

    Heads narrower or fewer than `hidden size / heads` are beyond most configs; the count that is told then is the largest
    that divides the hidden size, for the library refuses to build another, and `shapes.json` tells the true one.
    """
    config.num_hidden_layers = len(layout.stack)
    config.hidden_size = layout.hidden
    found = layout.layers
    if len({layer.neurons for layer in found}) == 1:
        setattr(config, layout.pattern.neurons, found[0].neurons)
    _write_heads(found, config)


def _write_heads(found: Sequence[Layer], config: Any) -> None:
    heads = max(layer.linear(layer.pattern.attended).in_features // layer.head_width for layer in found)
    config.num_attention_heads = _divisor(config.hidden_size, heads)
    if isinstance(getattr(config, "num_key_value_heads", None), int):
        config.head_dim = found[0].head_width
        config.num_key_value_heads = _divisor(config.num_attention_heads, max(layer.heads for layer in found))


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` up to `most`."""
    return next(count for count in range(most, 0, -1) if number % count == 0)
