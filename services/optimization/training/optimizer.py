"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) over what may change, and its state as flat tensors."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_EMBEDDINGS = frozenset({"embeddings", "embedder", "wte", "wpe"})  # transformers' names


def adamw(parameters: Iterable[nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """Vectors, which are biases and normalization weights, do not decay. The caller sets the learning rate before each step."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    # Fused: one pass over each tensor. An unfused step over a small student's embeddings takes longer than its forward and backward.
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=True)


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`INDEX.NAME` to tensor."""
    return {f"{index}.{name}": value for index, state in optimizer.state_dict()["state"].items() for name, value in state.items()}


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    content = optimizer.state_dict()
    content["state"] = {}
    for path, value in tensors.items():
        index, _, name = path.partition(".")
        content["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(content)


@contextmanager
def frozen_embeddings(module: nn.Module, freeze: bool) -> Iterator[None]:
    """Inside, and with `freeze`, the parameters of embeddings take no gradient."""
    frozen = [parameter for name, parameter in module.named_parameters() if freeze and _EMBEDDINGS & set(name.split("."))]
    frozen = [parameter for parameter in frozen if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
