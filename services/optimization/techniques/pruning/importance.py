"""How much each part matters.

l1, l2   the norm of its weights (Li et al. 2017, arXiv 1608.08710)
taylor   |Σ w · ∂loss/∂w| over its weights, the first-order change of the loss without it, averaged over batches
         (Molchanov et al. 2017, arXiv 1611.06440; for attention heads Michel et al. 2019, arXiv 1905.10650)
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from services.optimization.techniques.pruning.parts import Parts

Importance = Literal["l1", "l2", "taylor"]


def magnitudes(parts: Parts, norm: Literal["l1", "l2"]) -> Tensor:
    """FP32 [parts]. Biases and normalization's factors do not count: their size says nothing of the part's."""
    if norm == "l1":
        return parts.sums(lambda weight: weight.abs() if weight.dim() > 1 else None)
    return parts.sums(lambda weight: weight.square() if weight.dim() > 1 else None).sqrt()


def taylor(places: Sequence[Parts], model: nn.Module, losses: Iterable[Tensor]) -> list[Tensor]:
    """FP32 [parts] per place; each of `losses` is one batch's, and is differentiated before the next is asked for."""
    totals, batches = [torch.zeros(parts.count) for parts in places], 0
    for loss in losses:
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        batches += 1
        for total, parts in zip(totals, places, strict=True):
            total += parts.sums(_first_order).abs()
    model.zero_grad(set_to_none=True)
    return [total / max(batches, 1) for total in totals]


def _first_order(weight: nn.Parameter) -> Tensor | None:
    """w · ∂loss/∂w, summed with its sign: what one weight of a part costs another may pay back."""
    return None if weight.grad is None else weight.detach() * weight.grad
