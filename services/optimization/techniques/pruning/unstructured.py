"""Zeros by magnitude (Han et al. 2015, arXiv 1506.02626), in any place or as N:M patterns (Mishra et al. 2021, arXiv 2104.08378)."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from services.optimization.failures import Internal, UnsupportedOperator
from services.optimization.techniques.pruning.recovery import load, recover, recovery_notes
from services.optimization.techniques.saving import save
from services.optimization.techniques.technique import Context, Outcome

if TYPE_CHECKING:
    from services.optimization.techniques.prune_weights import PruneWeightsParameters

_WORTH = (
    "Dense kernels multiply zeros as fast as any number, so nothing gets faster on processors; the file gets smaller only where it is"
    " compressed, to compressed_bytes by zlib. N:M patterns speed up hardware with sparse tensor cores alone."
)


@dataclass(frozen=True)
class Layer:
    """A layer whose weights may become zero. `inputs` is the weight's dimension that runs over them."""

    path: str
    module: nn.Module
    inputs: int

    @property
    def weight(self) -> Tensor:
        found: Tensor = self.module.weight.data  # type: ignore[assignment]
        return found


def sparse_layers(model: nn.Module, exclude: Sequence[str]) -> list[Layer]:
    """Linear layers and convolutions, but for those that share their weight with a table of embeddings."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found = []
    for path, module in model.named_modules():
        inputs = {nn.Linear: 1, nn.Conv1d: 1, nn.Conv2d: 1, Conv1D: 0}.get(type(module))
        excluded = any(fnmatchcase(path, pattern) for pattern in exclude)
        if inputs is not None and id(module.weight) not in tables and not excluded:
            found.append(Layer(path, module, inputs))
    return found


def smallest(values: Tensor, count: int) -> Tensor:
    """True at exactly `count` positions: those of the smallest magnitude, of equal ones the first."""
    order = torch.sort(values.abs().flatten(), stable=True).indices[:count]
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[order] = True
    return mask.view(values.shape)


def smallest_of_each(values: Tensor, kept: int, block: int, dim: int) -> Tensor:
    """True at all but the `kept` largest magnitudes of every `block` neighbours along `dim`, whose size is a multiple of `block`."""
    blocks = values.abs().movedim(dim, -1)
    blocks = blocks.view(*blocks.shape[:-1], -1, block)
    order = blocks.sort(dim=-1, stable=True).indices[..., : block - kept]
    mask = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, order, True)
    return mask.flatten(-2).movedim(-1, dim)


class Zeros:
    """What stays zero in each layer, however the weights are trained."""

    def __init__(self, layers: Sequence[Layer], masks: Sequence[Tensor]) -> None:
        self._pairs = list(zip(layers, masks, strict=True))

    def apply(self) -> None:
        for layer, mask in self._pairs:
            layer.weight.masked_fill_(mask.to(layer.weight.device), 0)

    def rows(self) -> list[dict[str, Any]]:
        """Per layer, zeros as they are counted. Raises Internal where a weight came back."""
        found = []
        for layer, mask in self._pairs:
            zeros = int((layer.weight == 0).sum())
            if zeros < int(mask.sum()):
                raise Internal(f"{layer.path}: {int(mask.sum()) - zeros} of the weights that were cut came back in training")
            found.append({"place": layer.path, "weights": mask.numel(), "zeros": zeros, "sparsity": round(zeros / mask.numel(), 6)})
        return found


def choose(layers: Sequence[Layer], parameters: "PruneWeightsParameters") -> tuple[Zeros, list[str]]:
    """Which weights go, and the paths of layers that the pattern does not fit and that stay whole. Raises UnsupportedOperator."""
    if parameters.pattern != "unstructured":
        return _choose_blocks(layers, *map(int, parameters.pattern.split(":")))
    if not layers:
        raise UnsupportedOperator("the model has no linear layer or convolution whose weights could become zero")
    if parameters.scope == "global":
        return Zeros(layers, _globally(layers, parameters.sparsity)), []
    return Zeros(layers, [smallest(layer.weight, round(parameters.sparsity * layer.weight.numel())) for layer in layers]), []


def _globally(layers: Sequence[Layer], sparsity: float) -> list[Tensor]:
    sizes = [layer.weight.numel() for layer in layers]
    together = smallest(torch.cat([layer.weight.flatten() for layer in layers]), round(sparsity * sum(sizes)))
    masks = zip(torch.split(together, sizes), layers, strict=True)
    return [mask.view(layer.weight.shape) for mask, layer in masks]


def _choose_blocks(layers: Sequence[Layer], kept: int, block: int) -> tuple[Zeros, list[str]]:
    fitting = [layer for layer in layers if layer.weight.shape[layer.inputs] % block == 0]
    if not fitting:
        raise UnsupportedOperator(f"no layer has a multiple of {block} inputs, as the pattern {kept}:{block} asks")
    masks = [smallest_of_each(layer.weight, kept, block, layer.inputs) for layer in fitting]
    return Zeros(fitting, masks), [layer.path for layer in layers if layer not in fitting]


def prune(context: Context, parameters: "PruneWeightsParameters") -> Outcome:
    """Raises a class of `failures`."""
    module = load(context)
    zeros, whole = choose(sparse_layers(module.model, parameters.exclude), parameters)
    context.progress(0.1, "setting the smallest weights to zero")
    zeros.apply()
    runs = []
    if parameters.recovery is not None:
        runs.append(recover(context, module, parameters.recovery, parameters.losses, after_step=zeros.apply))
        zeros.apply()
    context.progress(0.95, "writing the sparse model")
    save(module, context.source, context.target, context.signature)
    return Outcome(context.signature, _notes(context, parameters, zeros, whole) | recovery_notes(runs))


def _notes(context: Context, parameters: "PruneWeightsParameters", zeros: Zeros, whole: list[str]) -> dict[str, Any]:
    rows = zeros.rows()
    weights, gone = sum(row["weights"] for row in rows), sum(row["zeros"] for row in rows)
    return {
        "pattern": parameters.pattern,
        "scope": parameters.scope,
        "sparsity": round(gone / weights, 6),
        "zeros": gone,
        "weights": weights,
        "left_whole": whole,
        "compressed_bytes_before": _compressed_bytes(context.source),
        "compressed_bytes": _compressed_bytes(context.target),
        "worth": _WORTH,
        "layers": rows,
    }


def _compressed_bytes(folder: Path) -> int:
    """Of the weights' files, by zlib's quickest level."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        packer = zlib.compressobj(1)
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                total += len(packer.compress(chunk))
        total += len(packer.flush())
    return total
