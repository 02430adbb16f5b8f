"""What a model costs: its parameters, and the multiply-accumulates of one row."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from services.backends import shapes
from services.repository.manifest import Signature

# torch 2.13 counts the fused attention of GPUs alone.
_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}  # type: ignore[no-untyped-call]
TOKENS = 128  # of the row that is counted, where the model takes as many


def count_parameters(model: nn.Module) -> int:
    """A tied weight once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: Any, signature: Signature) -> int:
    """Of one text of `TOKENS` tokens or one image: all products of matrices and convolutions, attention's included."""
    inputs = shapes.probe(model, signature)
    if signature.task.takes_text:
        tokens = min(TOKENS, signature.max_tokens or TOKENS)
        inputs = {name: value[:, :1].expand(-1, tokens) for name, value in inputs.items()}
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        model(**inputs)
    return int(counter.get_total_flops()) // 2
