"""What can be cut: rows of equal parts (heads, neurons, channels, …), each known by its slices of the model's weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Values = Callable[[nn.Parameter], Tensor | None]  # something shaped as the parameter; None: it does not count


@dataclass(frozen=True)
class Slice:
    """Where `owner`'s parameter `name` belongs to which part: `positions` [parts, width] along dimension `dim`."""

    owner: nn.Module
    name: str
    dim: int
    positions: Tensor

    @property
    def parameter(self) -> nn.Parameter:
        found: nn.Parameter = getattr(self.owner, self.name)
        return found


@dataclass(frozen=True)
class Parts:
    """`count` parts of one place, e.g. the heads of a layer. `cut` keeps those at the given ascending positions.

    A part is its `slices`, or for whole layers everything in one of the modules `wholes`.
    """

    kind: str  # heads | ffn | hidden | channels | layers
    place: str  # the module's path
    count: int
    cut: Callable[[Tensor], None]
    slices: tuple[Slice, ...] = ()
    wholes: tuple[nn.Module, ...] = ()

    def sums(self, values: Values) -> Tensor:
        """FP32 [parts]: the sum of `values` over each part's weights."""
        total = torch.zeros(self.count)
        for piece in self.slices:
            found = values(piece.parameter)
            if found is not None:
                total += found.detach().float().movedim(piece.dim, 0)[piece.positions].flatten(1).sum(1)
        for index, module in enumerate(self.wholes):
            total[index] += sum(
                (float(found.detach().float().sum()) for found in map(values, module.parameters()) if found is not None), 0.0
            )
        return total
