"""Which processors a run uses."""

from collections.abc import Sequence

import torch
from torch import nn

CPU = torch.device("cpu")


def visible() -> tuple[torch.device, ...]:
    """Every visible GPU, else the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(torch.device("cuda", index) for index in range(count)) or (CPU,)


def chosen(devices: Sequence[torch.device], batch_rows: int, reads_internals: bool) -> tuple[torch.device, ...]:
    """As many as a batch can be split over; the first alone where hooks read the model's inside, which replicas do not share."""
    return tuple(devices[:1] if reads_internals else devices[: max(1, batch_rows)])


def replicated(module: nn.Module, devices: Sequence[torch.device]) -> nn.Module:
    """The module on the first device, each batch's rows split over all of them where there are several."""
    module.to(devices[0])
    return nn.DataParallel(module, [device.index for device in devices]) if len(devices) > 1 else module
