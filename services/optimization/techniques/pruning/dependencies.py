"""What must be cut together where layers feed each other: hidden sizes and convolution channels, by Torch-Pruning's graph.

Fang et al. 2023, "DepGraph: Towards Any Structural Pruning" (arXiv 2301.12900).
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from services.backends import shapes
from services.optimization.techniques.pruning.layout import Layout
from services.optimization.techniques.pruning.parts import Parts, Slice
from services.repository.manifest import Signature, Task

_ROW_FIRST = (nn.Linear, nn.Conv1d, nn.Conv2d)
_WIDTHS = ("embed_dim", "dim", "hidden_size")  # what modules remember of the hidden size besides their weights


class Dependencies:
    """The graph of one model, and what can be cut in it."""

    def __init__(self, model: Any, signature: Signature) -> None:
        """`model` is transformers' own, in evaluation mode, its `Conv1D`s swapped for linear layers."""
        self._model = model
        # A cache of keys and values would join layers by concatenations that the graph does not understand.
        uncached = {"use_cache": False} if signature.task is Task.CAUSAL_LM else {}
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # it tells which parameters stand outside of a layer; they are cut as well
            self._graph = tp.DependencyGraph().build_dependency(
                model,
                example_inputs=shapes.probe(model, signature),
                forward_fn=lambda traced, inputs: traced(**inputs, **uncached),
                output_transform=_tensors,
                verbose=False,
            )
        self._paths = {module: path for path, module in model.named_modules()}

    def hidden(self, layout: Layout) -> Parts:
        """The residual stream: its width is one for embeddings, every layer, and the heads on top."""
        root = layout.layers[0].linear(layout.pattern.falling)
        slices = self._slices(self._group(root, range(root.out_features)))
        return Parts("hidden", layout.place, root.out_features, lambda keep: self._cut_hidden(layout, keep), slices)

    def channels(self) -> list[Parts]:
        """Output channels of convolutions, those together that a residual sum joins."""
        roots = [
            group[0].dep.target.module for group in self._graph.get_all_groups(root_module_types=[nn.Conv1d, nn.Conv2d]) if _is_conv(group)
        ]
        return [self._channels(root) for root in roots]

    def _channels(self, root: nn.Conv2d) -> Parts:
        slices = self._slices(self._group(root, range(root.out_channels)))
        return Parts("channels", self._paths[root], root.out_channels, lambda keep: self._remove(root, keep), slices)

    def _group(self, root: nn.Module, positions: Iterable[int]) -> Any:
        cut = tp.prune_linear_out_channels if isinstance(root, nn.Linear) else tp.prune_conv_out_channels
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            return self._graph.get_pruning_group(root, cut, list(positions))

    def _remove(self, root: nn.Module, keep: Tensor) -> None:
        gone = sorted(set(range(self._graph.get_out_channels(root))) - set(keep.tolist()))
        if gone:
            self._group(root, gone).prune()

    def _cut_hidden(self, layout: Layout, keep: Tensor) -> None:
        before = layout.hidden
        self._remove(layout.layers[0].linear(layout.pattern.falling), keep)
        for path in layout.pattern.outer:  # as wide as the stream and apart from it in the graph: configs know one width
            found = dict(self._model.named_modules()).get(path)
            if isinstance(found, nn.Linear) and found.out_features == before and found in self._graph.module2node:
                self._remove(found, keep)
        for module in self._model.modules():
            for name in _WIDTHS:
                if vars(module).get(name) == before:
                    setattr(module, name, len(keep))
        self._model.tie_weights()

    def _slices(self, group: Any) -> tuple[Slice, ...]:
        """The weights that go with each position of the group's root."""
        found = []
        for item in group:
            rows = self._graph.is_out_channel_pruning_fn(item.dep.handler)
            for owner, name, dim in self._cut_parameters(item.dep.target.module, rows):
                found.append(Slice(owner, name, dim, _by_root(item.idxs, item.root_idxs)))
        return tuple(found)

    def _cut_parameters(self, module: nn.Module | nn.Parameter, rows: bool) -> list[tuple[nn.Module, str, int]]:
        if isinstance(module, nn.Parameter):
            return self._free(module)
        if isinstance(module, _ROW_FIRST):
            if rows:
                return [(module, name, 0) for name in ("weight", "bias") if getattr(module, name) is not None]
            return [(module, "weight", 1)] if getattr(module, "groups", 1) == 1 else []
        if isinstance(module, nn.Embedding):
            return [(module, "weight", 1)]
        if isinstance(module, nn.LayerNorm | _BatchNorm):
            return [(module, name, 0) for name in ("weight", "bias") if getattr(module, name) is not None]
        return []

    def _free(self, parameter: nn.Parameter) -> list[tuple[nn.Module, str, int]]:
        """A parameter that stands outside of a layer, e.g. a class token."""
        for module in self._model.modules():
            for name, value in module.named_parameters(recurse=False):
                if value is parameter:
                    return [(module, name, max(parameter.dim() - 1, 0))]
        return []


def _is_conv(group: Any) -> bool:
    return isinstance(group[0].dep.target.module, nn.Conv1d | nn.Conv2d)


def _by_root(positions: list[int], roots: list[int]) -> Tensor:
    """[root positions, width]: one channel may be several inputs of a layer behind a flattening."""
    found: dict[int, list[int]] = defaultdict(list)
    for position, root in zip(positions, roots, strict=True):
        found[root].append(position)
    return torch.tensor([found[root] for root in sorted(found)])


def _tensors(answer: Any) -> list[Tensor]:
    """Every tensor of an answer: a pooler hangs on the graph by its own output alone. Scalars are no part of it."""
    return [value for value in answer.values() if isinstance(value, Tensor) and value.dim() > 0]
