"""Training against a teacher and labels, for every technique that changes weights. Importing this imports no torch."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from services.optimization.training.fitted import Fitted
from services.optimization.training.parameters import LossParameters, TrainingParameters

if TYPE_CHECKING:
    from torch import nn

    from services.optimization.techniques.technique import Context

__all__ = ["Fitted", "LossParameters", "TrainingParameters", "fit"]


def fit(
    student: "nn.Module",
    context: "Context",
    training: TrainingParameters,
    losses: LossParameters,
    *,
    stage: str,
    share: tuple[float, float] = (0.0, 1.0),
    after_step: Callable[[], None] | None = None,
) -> Fitted:
    """Trains `student` in place against `context.original`, the teacher, on `context.training`; the best weights found stay in it.

    `student` is what `services.backends.torch.load_module` answers for `context.signature`, or the same module changed by a
    technique; it is left on the CPU, in FP32 and in evaluation mode. Its tokenizer is the one in `context.source`.
    `stage` names the run among a technique's others: its checkpoints lie in `context.checkpoints/stage`, and a run that was
    killed goes on from the last one to the weights it would have had. Progress is told within `share` of the technique's own.
    `after_step` is called after every update of the weights, e.g. to keep pruned weights at zero; they may lie on a GPU then.

    Raises NotEnoughData for data that cannot be learnt from, UnsupportedOperator where a loss does not fit the models,
    Diverged when the loss is no number any more, BadModel for a teacher that does not load, and what `context.progress` raises.
    """
    from services.optimization.training.fitting import run

    return run(student, context, training, losses, stage=stage, share=share, after_step=after_step)
