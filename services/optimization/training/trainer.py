"""The loop: steps, validations, checkpoints, until the epochs are over or nothing improves."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from services.optimization.failures import Diverged
from services.optimization.training import devices as processors
from services.optimization.training import optimizer as adam
from services.optimization.training import randomness, schedule
from services.optimization.training.checkpoints import Checkpoint, Checkpoints
from services.optimization.training.data import Batch, Data
from services.optimization.training.fitted import Curves
from services.optimization.training.internals import OUTPUT, taken
from services.optimization.training.monitor import Monitor
from services.optimization.training.objective import Objective, agreement, mean_loss
from services.optimization.training.parameters import TrainingParameters
from services.optimization.training.standing import Split, Standing
from services.optimization.training.teacher import Answers, Teacher

_MODEL, _BEST, _OBJECTIVE, _OPTIMIZER, _RANDOM = "model.", "best.", "objective.", "optimizer.", "random."


@dataclass(frozen=True)
class Parts:
    """What a run is made of. `reads` are the internals that the objective reads of the student."""

    student: nn.Module
    data: Data
    teacher: Teacher
    objective: Objective
    split: Split
    reads: Sequence[str]
    devices: Sequence[torch.device]
    checkpoints: Checkpoints
    monitor: Monitor
    seed: int
    clock: Callable[[], float]
    after_step: Callable[[], None] | None = None


@dataclass
class Trainer:
    """One run. `train` may be called once."""

    parts: Parts
    training: TrainingParameters
    standing: Standing = field(default_factory=Standing)
    curves: Curves = field(default_factory=Curves)

    def __post_init__(self) -> None:
        parts, training = self.parts, self.training
        lengths = parts.data.rows.lengths
        self._lengths = lengths[np.asarray(parts.split.trained)]
        self._held = schedule.cut(sorted(parts.split.held, key=lambda position: (int(lengths[position]), position)), training.batch_rows)
        self.steps_per_epoch = len(self._epoch(0))
        self._total = schedule.total_steps(training, self.steps_per_epoch)
        self._device = parts.devices[0]
        self._replicas = processors.replicated(parts.student, parts.devices)
        self._best: dict[str, Tensor] = {}
        self._internals: dict[str, Tensor] = {}
        self._saved_at = self._begun_at = parts.clock()

    def train(self) -> None:
        """Leaves the best weights in the student, the last ones without validation. Raises Diverged, OSError, BudgetExceeded."""
        with taken(self.parts.student, self.parts.reads) as self._internals:
            self._prepare()
            self._trained = [*self.parts.student.parameters(), *self.parts.objective.parameters()]
            self._optimizer = adam.adamw(self._trained, self.training.weight_decay)
            if not self._resume():
                self._validate()
            while not self.standing.stopped:
                self._train_epoch()
            self._conclude()

    def _prepare(self) -> None:
        """One small batch through both models, which leaves no trace in them."""
        self.parts.student.eval()
        positions = self.parts.split.trained[:2]
        with torch.no_grad():
            batch = self.parts.data.batch(positions, self._device)
            self.parts.objective.prepare(self._answers(batch), self.parts.teacher.answers(positions))

    def _answers(self, batch: Batch) -> Answers:
        return {OUTPUT: self._replicas(**batch.inputs), **self._internals}

    def _epoch(self, epoch: int) -> list[list[list[int]]]:
        return schedule.epoch_steps(self._lengths, self.training, self.parts.seed, epoch)

    def _train_epoch(self) -> None:
        steps = self._epoch(self.standing.epoch)
        for step in steps[self.standing.done :]:
            self._step([[self.parts.split.trained[index] for index in batch] for batch in step])
            if self.standing.stopped:
                break

    def _step(self, positions: Sequence[Sequence[int]]) -> None:
        standing, rate = self.standing, schedule.learning_rate(self.training, self.standing.step, self._total)
        loss, norm = self._update(positions, rate)
        standing.step, standing.done = standing.step + 1, standing.done + 1
        point = {"loss": loss, "learning_rate": rate, "gradient_norm": norm}
        self.curves.record(standing.step, point)
        self.parts.monitor.point(self._fraction, standing.step, point)
        if schedule.is_evaluation(standing.done, self.steps_per_epoch, self.training.evaluations_per_epoch):
            self._validate()
        ended = standing.done == self.steps_per_epoch
        if ended:
            standing.epoch, standing.done = standing.epoch + 1, 0
        standing.stopped = self._reason_to_stop()
        if ended or self.parts.clock() - self._saved_at >= self.training.checkpoint_seconds:
            self._save()

    @property
    def _fraction(self) -> float:
        return self.standing.step / max(1, self._total)

    def _update(self, positions: Sequence[Sequence[int]], rate: float) -> tuple[float, float]:
        """One change of the weights by the mean loss over all batches, whatever rows each of them has; (loss, gradient norm)."""
        self.parts.student.train()
        self._optimizer.zero_grad(set_to_none=True)
        batches = [self.parts.data.batch(rows, self._device) for rows in positions]
        counts = [self.parts.objective.counts(batch) for batch in batches]
        totals = {name: max(1, sum(count[name] for count in counts)) for name in self.parts.objective.weights}
        sums = [self._backward(batch, totals) for batch in batches]
        loss = mean_loss(sums, counts, self.parts.objective.weights)
        norm = float(nn.utils.clip_grad_norm_(self._trained, self.training.max_gradient_norm or math.inf))
        self._check("loss", loss, rate)
        self._check("length of the gradient", norm, rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        if self.parts.after_step is not None:
            self.parts.after_step()
        return loss, norm

    def _backward(self, batch: Batch, totals: Mapping[str, int]) -> dict[str, float]:
        answers = self._answers(batch)
        sums = self.parts.objective.sums(batch, answers, self.parts.teacher.answers(batch.positions))
        weights = self.parts.objective.weights
        torch.stack([weights[name] * value / totals[name] for name, value in sums.items()]).sum().backward()  # type: ignore[no-untyped-call]
        return {name: float(value.detach()) for name, value in sums.items()}

    def _check(self, what: str, value: float, rate: float) -> None:
        if not math.isfinite(value):
            raise Diverged(
                f"training diverged at step {self.standing.step + 1} of {self._total}: the {what} is {value} at the learning rate"
                f" {rate:.3g}; try a lower learning_rate or a longer warmup_share"
            )

    def _validate(self) -> None:
        if not self._held:
            return
        self.parts.student.eval()
        with torch.no_grad():
            parts = [self._measure(self.parts.data.batch(positions, self._device)) for positions in self._held]
        loss = mean_loss([part[0] for part in parts], [part[1] for part in parts], self.parts.objective.weights)
        self._check("validation loss", loss, schedule.learning_rate(self.training, min(self.standing.step, self._total - 1), self._total))
        point = {"validation_loss": loss} | _share("validation_agreement", [part[2] for part in parts])
        self._judge(loss)
        self.curves.record(self.standing.step, point)
        told = ", ".join(f"{name.removeprefix('validation_')} {value:.4f}" for name, value in point.items())
        self.parts.monitor.line(self._fraction, f"step {self.standing.step} of {self._total}: validation {told}", self.standing.step, point)

    def _measure(self, batch: Batch) -> tuple[dict[str, float], dict[str, int], tuple[float, int]]:
        student, teacher = self._answers(batch), self.parts.teacher.answers(batch.positions)
        sums = {name: float(value) for name, value in self.parts.objective.sums(batch, student, teacher).items()}
        agreed = agreement(self.parts.data.task, batch, student[OUTPUT], teacher.get(OUTPUT))
        return sums, self.parts.objective.counts(batch), agreed

    def _judge(self, loss: float) -> None:
        if loss < self.standing.best_loss:
            self.standing.best_loss, self.standing.best_step, self.standing.stale = loss, self.standing.step, 0
            self._best = {name: value.detach().cpu().clone() for name, value in self.parts.student.state_dict().items()}
        else:
            self.standing.stale += 1

    def _reason_to_stop(self) -> str:
        if self.training.patience and self.standing.stale >= self.training.patience:
            return f"no better validation loss in {self.standing.stale} evaluations"
        if self.standing.step >= self._total:
            return "max_steps reached" if self._total == self.training.max_steps else "all epochs done"
        return ""

    def _conclude(self) -> None:
        if self._best:
            self.parts.student.load_state_dict(self._best)
        self.parts.student.to(processors.CPU).eval()
        self.standing.seconds += self.parts.clock() - self._begun_at

    def _save(self) -> None:
        now = self.parts.clock()
        tensors, drawn = randomness.capture()
        states: dict[str, Mapping[str, Any]] = {
            _MODEL: self.parts.student.state_dict(),
            _BEST: self._best,
            _OBJECTIVE: self.parts.objective.state_dict(),
            _OPTIMIZER: adam.state_tensors(self._optimizer),
            _RANDOM: tensors,
        }
        standing = self.standing.plain() | {"seconds": self.standing.seconds + now - self._begun_at}
        flat = {f"{prefix}{name}": value for prefix, part in states.items() for name, value in part.items()}
        self.parts.checkpoints.save(Checkpoint(flat, {"standing": standing, "curves": self.curves.plain(), "random": drawn}))
        self._saved_at = now

    def _resume(self) -> bool:
        """Whether there was a checkpoint to go on from."""
        found = self.parts.checkpoints.load()
        if found is None:
            return False
        self.parts.student.load_state_dict(found.part(_MODEL))
        self.parts.objective.load_state_dict(found.part(_OBJECTIVE))
        adam.load_state_tensors(self._optimizer, found.part(_OPTIMIZER))
        self._best = found.part(_BEST)
        self.standing = Standing.read(found.state["standing"])
        self.curves = Curves(found.state["curves"])
        randomness.restore(found.part(_RANDOM), found.state["random"])
        self.parts.monitor.line(self._fraction, f"going on from the checkpoint at step {self.standing.step} of {self._total}")
        return True


def _share(name: str, parts: Sequence[tuple[float, int]]) -> dict[str, float]:
    items = sum(count for _, count in parts)
    return {name: sum(total for total, _ in parts) / items} if items else {}
