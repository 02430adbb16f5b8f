"""Fake quantization: FP32 arithmetic on the values that INT8 can hold, with gradients passed straight through the rounding.

It follows what the final graph computes, scale for scale: weights signed and symmetric, activations unsigned and asymmetric,
rounding to even (Jacob et al. 2018, arXiv 1712.05877; the straight-through estimator: Bengio et al. 2013, arXiv 1308.3432).
"""

from typing import Any

import torch
from torch import Tensor, nn

LEVELS = 255  # of an unsigned activation, above zero
EMA_SHARE = 0.05  # of a new batch's range in the running one


class _Straight(torch.autograd.Function):
    """Answers the second argument; the gradient goes to the first."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, quantized: Tensor) -> Tensor:
        return quantized.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _straight(values: Tensor, quantized: Tensor) -> Tensor:
    answer: Tensor = _Straight.apply(values, quantized)  # type: ignore[no-untyped-call]  # torch's own
    return answer


def activation_scale(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, zero point), both scalar FP32, of [low, high] widened to hold zero."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / LEVELS
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (-low / scale).clamp(0, LEVELS).round()


def fake_activation(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Of any shape. Values outside the range are clipped and get no gradient."""
    with torch.no_grad():
        scale, zero = activation_scale(low, high)
        quantized = (((values / scale).round() + zero).clamp(0, LEVELS) - zero) * scale
    return _straight(torch.minimum(torch.maximum(values, low.clamp(max=0)), high.clamp(min=0)), quantized)


def weight_scale(weight: Tensor, levels: int, channel_axis: int | None) -> Tensor:
    """FP32, broadcastable to the weight: one per output channel along `channel_axis`, or one for all."""
    axes = [axis for axis in range(weight.ndim) if axis != channel_axis]
    peak = weight.abs().amax(dim=axes, keepdim=True)
    return torch.where(peak > torch.finfo(torch.float32).tiny, peak / levels, torch.ones_like(peak))


def fake_weight(weight: Tensor, levels: int, channel_axis: int | None) -> Tensor:
    with torch.no_grad():
        scale = weight_scale(weight, levels, channel_axis)
        quantized = (weight / scale).round().clamp(-levels, levels) * scale
    return _straight(weight, quantized)


def bias_rounding(bias: Tensor, activation: Tensor, weight: Tensor) -> Tensor:
    """What a bias [outputs] gains in INT32, in units of both scales' product, as integer kernels add it. Without a gradient."""
    with torch.no_grad():
        scale = activation * weight.reshape(-1)
        return (bias / scale).round() * scale - bias


class FakeWeight(nn.Module):
    """A parametrization of a weight."""

    def __init__(self, levels: int, channel_axis: int | None) -> None:
        super().__init__()
        self.levels = levels
        self.channel_axis = channel_axis

    def forward(self, weight: Tensor) -> Tensor:
        return fake_weight(weight, self.levels, self.channel_axis)


class FakeTable(nn.Module):
    """A parametrization of a table that is looked up, which is quantized as an activation is: unsigned, per tensor."""

    def forward(self, weight: Tensor) -> Tensor:
        return fake_activation(weight, weight.amin(), weight.amax())


class DynamicActivation(nn.Module):
    """Over each batch's own range, as DynamicQuantizeLinear."""

    def forward(self, values: Tensor) -> Tensor:
        return fake_activation(values, values.detach().amin(), values.detach().amax())


class StaticActivation(nn.Module):
    """Over a range that follows the batches seen in training mode and stands still in evaluation mode."""

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Buffers, so that checkpoints and the best weights carry the ranges that belong to them.
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            self._follow(values.detach())
        return fake_activation(values, self.low, self.high)

    @torch.no_grad()
    def _follow(self, values: Tensor) -> None:
        share = EMA_SHARE if self.seen else 1.0
        self.low.lerp_(values.amin(), share)
        self.high.lerp_(values.amax(), share)
        self.seen.fill_(1.0)

    def range(self) -> tuple[float, float]:
        return float(self.low), float(self.high)
