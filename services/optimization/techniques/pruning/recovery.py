"""Training what a cut left, and what the report says of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from services.backends import LoadError
from services.backends.torch import load_module
from services.optimization.failures import BadModel
from services.optimization.techniques.technique import Context
from services.optimization.training import Fitted, LossParameters, TrainingParameters, fit

UNHEALED = "Nothing was trained after the cut: cutting alone costs much of a model's quality; recovery brings most of it back."
_SHARE = (0.1, 0.95)  # of the step's progress: loading and scoring before, writing after


@dataclass(frozen=True)
class Cut:
    """One of several cuts with their recoveries; `number` counts from 1."""

    number: int = 1
    of: int = 1

    @property
    def share(self) -> tuple[float, float]:
        """The part of the step's progress that is this one's."""
        first, last = _SHARE
        width = (last - first) / self.of
        return first + (self.number - 1) * width, first + self.number * width


def load(context: Context) -> Any:
    """The source's module in FP32, in which norms and training are exact enough. Raises BadModel."""
    torch.set_num_threads(context.threads)
    torch.manual_seed(context.seed)
    try:
        return load_module(context.source, context.signature).float()
    except LoadError as error:
        raise BadModel(str(error)) from error


def recover(
    context: Context,
    module: nn.Module,
    training: TrainingParameters,
    losses: LossParameters,
    cut: Cut = Cut(),
    *,
    after_step: Callable[[], None] | None = None,
) -> Fitted:
    """One training against the job's original."""
    return fit(module, context, training, losses, stage=f"recovery-{cut.number}", share=cut.share, after_step=after_step)


def recovery_notes(runs: Sequence[Fitted]) -> dict[str, Any]:
    """`recovery`, a table of the runs, and their `curves`; without runs a remark."""
    rows: list[dict[str, Any]] = []
    curves: dict[str, Any] = {}
    for number, run in enumerate(runs, start=1):
        found = run.notes()
        prefix = f"recovery {number}: " if len(runs) > 1 else ""
        curves |= {prefix + name: points for name, points in found.pop("curves").items()}
        rows.append({"iteration": number} | found)
    return {"recovery": rows, "curves": curves} if rows else {"remark": UNHEALED}
