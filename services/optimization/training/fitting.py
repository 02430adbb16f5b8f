"""A run put together: data, teacher, objective and devices, then the loop."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from services.optimization.failures import UnsupportedOperator
from services.optimization.kept import digest_of
from services.optimization.techniques.technique import Context
from services.optimization.training import data as examples
from services.optimization.training import devices as processors
from services.optimization.training import objective as objectives
from services.optimization.training import optimizer, randomness
from services.optimization.training.checkpoints import Checkpoints
from services.optimization.training.data import Data
from services.optimization.training.fitted import Fitted
from services.optimization.training.monitor import Monitor
from services.optimization.training.objective import Objective, Wanted
from services.optimization.training.parameters import LossParameters, TrainingParameters
from services.optimization.training.standing import Split
from services.optimization.training.teacher import LARGEST_CACHE_BYTES, Teacher, TeacherOutputs
from services.optimization.training.trainer import Parts, Trainer
from services.optimization.uploads.configuration import read_json

_TEACHING = 0.15  # share of the progress in which the teacher answers
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers")  # in config.json, by family


def run(
    student: nn.Module,
    context: Context,
    training: TrainingParameters,
    losses: LossParameters,
    *,
    stage: str,
    share: tuple[float, float] = (0.0, 1.0),
    after_step: Callable[[], None] | None = None,
    devices: Sequence[torch.device] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Fitted:
    """`services.optimization.training.fit` on `devices`, by default every GPU that is visible, else the CPU."""
    with randomness.seeded(context.seed), _threads(context.threads), optimizer.frozen_embeddings(student, training.freeze_embeddings):
        student.float()
        data = examples.read(context, losses, training.max_tokens)
        names = _wanted(student, context, losses, data)
        used = processors.chosen(processors.visible() if devices is None else devices, training.batch_rows, bool(names.student))
        middle = share[0] + (share[1] - share[0]) * (_TEACHING if names.teacher else 0)
        teacher = _open_teacher(context, data, names, used[0], Monitor(context.progress, (share[0], middle), clock))
        parts = Parts(
            student=student,
            data=data,
            teacher=teacher,
            objective=Objective(data.task, losses, data.is_labelled, names),
            split=Split.of(len(data), training.validation_share, context.seed),
            reads=names.student,
            devices=used,
            checkpoints=Checkpoints(context.checkpoints / stage, _identity(student, context, training, losses)),
            monitor=Monitor(context.progress, (middle, share[1]), clock),
            seed=context.seed,
            clock=clock,
            after_step=after_step,
        )
        trainer = Trainer(parts, training)
        trainer.train()
    return _fitted(trainer, losses)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _wanted(student: nn.Module, context: Context, losses: LossParameters, data: Data) -> Wanted:
    """Raises UnsupportedOperator where the losses read what the models do not have in common."""
    inside = losses.hidden > 0 or losses.attention_relation > 0
    if inside and not data.shares_tokens:
        raise UnsupportedOperator("hidden, attention_relation: the teacher and the student cut texts into other tokens, which do not match")
    own = objectives.layer_count(student) if inside else 0
    return objectives.wanted(data.task, losses, data.is_labelled, own, _teacher_layers(context) if inside else 0)


def _teacher_layers(context: Context) -> int:
    config = read_json(context.original.folder, "config.json")
    found = [config[name] for name in _LAYER_COUNTS if isinstance(config.get(name), int)]
    if not found:
        raise UnsupportedOperator("hidden, attention_relation: the teacher's config.json counts no layers")
    return int(found[0])


def _open_teacher(context: Context, data: Data, names: Wanted, device: torch.device, monitor: Monitor) -> Teacher:
    outputs = TeacherOutputs(
        original=context.original,
        rows=data.teacher_rows,
        examples_digest=context.training.digest,
        wanted=names.teacher,
        outputs=context.outputs,
        device=device,
        remembered=context.original_remembered,
    )
    return outputs.open(lambda fraction: monitor.advance(fraction, f"the teacher answered {fraction:.0%} of the examples"))


def _identity(student: nn.Module, context: Context, training: TrainingParameters, losses: LossParameters) -> str:
    """Digest of what shapes the run; how often it is saved does not."""
    return digest_of(
        {
            "training": training.model_dump(mode="json", exclude={"checkpoint_seconds"}),
            "losses": losses.model_dump(mode="json"),
            "seed": context.seed,
            "examples": context.training.digest,
            "shapes": {name: list(value.shape) for name, value in student.state_dict().items()},
        }
    )


def _fitted(trainer: Trainer, losses: LossParameters) -> Fitted:
    parts, standing = trainer.parts, trainer.standing
    best = (standing.best_step, standing.best_loss) if standing.best_step >= 0 else None
    return Fitted(
        curves=trainer.curves.points,
        steps=standing.step,
        epochs=standing.epoch + standing.done / trainer.steps_per_epoch,
        stopped=standing.stopped,
        best=best,
        examples=len(parts.data),
        held_out=len(parts.split.held),
        labelled=parts.data.is_labelled,
        teacher_outputs=parts.teacher.kind,
        devices=tuple(map(str, parts.devices)),
        seconds=standing.seconds,
        remarks=tuple(_remarks(trainer, losses)),
    )


def _remarks(trainer: Trainer, losses: LossParameters) -> Iterator[str]:
    parts = trainer.parts
    if parts.teacher.kind == "live":
        yield f"the teacher ran beside the student: its answers take more than the {LARGEST_CACHE_BYTES >> 20} MB that are kept"
    if not parts.data.is_labelled and losses.alpha < 1 and objectives.teacher_weight(parts.data.task, losses, False) == 1:
        yield "the examples have no labels in use: the loss is the distance to the teacher alone"
    if not parts.split.held:
        yield "no example was held out: the last weights are kept"
