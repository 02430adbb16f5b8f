"""The random numbers of a run: seeded, saved with a checkpoint, and given back as they were found."""

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_HOST, _TORCH, _CUDA = "host", "torch", "cuda."


def capture() -> tuple[dict[str, Tensor], str]:
    """The states of every generator that a library below may draw from: tensors, and JSON."""
    tensors = {_TORCH: torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        tensors |= {f"{_CUDA}{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    tensors[_HOST] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    version, numbers, gauss_next = random.getstate()
    state = {"numpy": [kind, position, has_gauss, gauss], "python": [version, list(numbers), gauss_next]}
    return tensors, json.dumps(state)


def restore(tensors: Mapping[str, Tensor], text: str) -> None:
    """Sets the generators to what `capture` answered."""
    torch.set_rng_state(tensors[_TORCH])
    for name, state in tensors.items():
        if name.startswith(_CUDA) and int(name.removeprefix(_CUDA)) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name.removeprefix(_CUDA)))
    state = json.loads(text)
    kind, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, tensors[_HOST].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers), gauss_next))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every generator starts from `seed` inside and goes on afterwards as if nothing had been drawn."""
    before = capture()
    torch.manual_seed(seed)
    np.random.seed(seed % (1 << 32))
    random.seed(seed)
    try:
        yield
    finally:
        restore(*before)
