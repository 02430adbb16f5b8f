"""How many steps a run takes, what each one learns at, and which rows it sees. No tensor in it."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from services.optimization.training.parameters import TrainingParameters

_SORTED_STEPS = 32  # steps whose rows are sorted by length together: likeness within a batch, chance between epochs


def total_steps(training: TrainingParameters, steps_per_epoch: int) -> int:
    every = training.epochs * steps_per_epoch
    return min(every, training.max_steps) if training.max_steps else every


def learning_rate(training: TrainingParameters, step: int, total: int) -> float:
    """The rate of step 0 … total - 1: a linear rise over the warm-up, then the schedule, which ends just above zero."""
    warmup = min(round(total * training.warmup_share), total)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    left = (total - step) / max(1, total - warmup)  # 1 right after warm-up, 1 / (total - warmup) at the last step
    falls = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}
    return training.learning_rate * falls[training.schedule]


def cut(rows: Sequence[int], size: int) -> list[list[int]]:
    """Chunks of `size`. A last row alone joins the chunk before: batch normalization cannot train on one row."""
    starts = list(range(0, len(rows), size))
    if len(starts) > 1 and len(rows) - starts[-1] == 1:
        starts.pop()
    return [list(rows[start:end]) for start, end in pairwise([*starts, len(rows)])]


def epoch_steps(lengths: NDArray[np.int64], training: TrainingParameters, seed: int, epoch: int) -> list[list[list[int]]]:
    """Steps of an epoch, each a list of batches of positions in `lengths` [n], every position once.

    A step's rows depend on `batch_rows * gradient_accumulation` alone, so that both ways to reach it train alike.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    rows = training.batch_rows * training.gradient_accumulation
    steps: list[list[int]] = []
    for start in range(0, len(order), rows * _SORTED_STEPS):
        part = order[start : start + rows * _SORTED_STEPS]
        steps += cut([int(index) for index in part[np.argsort(lengths[part], kind="stable")]], rows)
    return [cut(steps[index], training.batch_rows) for index in random.permutation(len(steps))]


def is_evaluation(done: int, steps: int, evaluations: int) -> bool:
    """Whether one of an epoch's evenly spread evaluations is due after `done` of its `steps`."""
    return done * evaluations // steps > (done - 1) * evaluations // steps
