"""A worker that the kernel ends in the middle of a step."""

import multiprocessing
import os
import signal
from pathlib import Path

import torch

from services.backends.torch import load_module
from services.optimization.techniques.technique import Context
from services.optimization.training import LossParameters, TrainingParameters, fit
from tests.optimization.training.tiny_models import ContextOf, build, sentences

TRAINING = TrainingParameters(epochs=2, batch_rows=8, learning_rate=3e-3, checkpoint_seconds=0)


def silent(*_: object, **__: object) -> None:
    """Progress that can be sent to another process."""


def train(context: Context, student: Path, stage: str, kill_at: int = 0) -> dict[str, torch.Tensor]:
    """The weights that a run ends with; it ends its own process in step `kill_at`."""
    module, steps = load_module(student, context.signature), []

    def after_step() -> None:
        steps.append(1)
        if len(steps) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    fit(module, context, TRAINING, LossParameters(), stage=stage, after_step=after_step)
    return dict(module.state_dict())


def test_a_killed_worker_s_run_goes_on_to_the_same_weights(tmp_path: Path, context_of: ContextOf) -> None:
    student = build(tmp_path / "student", seed=1, hidden_dropout_prob=0.2).folder
    context = context_of(build(tmp_path / "teacher"), sentences(60), progress=silent)
    process = multiprocessing.get_context("spawn").Process(target=train, args=(context, student, "killed", 10))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (context.checkpoints / "killed" / "checkpoint.safetensors").exists()
    resumed, whole = train(context, student, "killed"), train(context, student, "whole")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
