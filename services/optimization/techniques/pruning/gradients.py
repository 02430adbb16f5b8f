"""The loss whose gradients tell what a part is worth, one batch after the other."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from services.optimization.examples import IGNORED, Examples
from services.optimization.rows import Batch, Rows, TextRows, batches
from services.repository.manifest import Task

BATCH_ROWS = 16
Loss = Callable[[Tensor, Batch, list[int]], Tensor]  # (answers, batch, positions of its rows) -> scalar


def losses(module: nn.Module, task: Task, rows: Rows, examples: Examples, seed: int) -> Iterator[Tensor]:
    """One differentiable scalar per batch; the model is in evaluation mode, so that dropout adds no noise.

    Labels give the cross-entropy, next tokens that of a causal language model. A classifier without labels is asked for its
    own predictions. For embeddings it is the answer along a random direction per row: its gradient's expected square is the
    square of how far the whole answer moves (the Gauss-Newton approximation), and no distance to itself, whose gradient is 0.
    """
    loss = _loss(task, rows, examples, torch.Generator().manual_seed(seed))
    for positions, batch in batches(rows, BATCH_ROWS):
        with torch.enable_grad():
            tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}
            yield loss(module(**tensors), batch, positions)


def _loss(task: Task, rows: Rows, examples: Examples, generator: torch.Generator) -> Loss:
    if task is Task.CAUSAL_LM:
        return _next_tokens
    if task is Task.EMBEDDING:
        return lambda answer, _, __: (answer * torch.randn(answer.shape, generator=generator)).sum(1).mean()
    if task is Task.TOKEN_CLASSIFICATION:
        return _token_loss(rows)
    if examples.labels is None:
        return lambda answer, _, __: cross_entropy(answer, answer.detach().argmax(-1))
    labels = torch.from_numpy(examples.labels)
    return lambda answer, _, positions: cross_entropy(answer, labels[positions])


def _next_tokens(answer: Tensor, batch: Batch, _: list[int]) -> Tensor:
    targets = np.where(batch["attention_mask"] > 0, batch["input_ids"], IGNORED)[:, 1:]
    return _per_token(answer[:, :-1], torch.from_numpy(np.ascontiguousarray(targets)))


def _token_loss(rows: Any) -> Loss:
    assert isinstance(rows, TextRows)  # noqa: S101  what `prepare` makes for this task
    labels = rows.labels

    def loss(answer: Tensor, batch: Batch, positions: list[int]) -> Tensor:
        targets = np.where(batch["attention_mask"] > 0, answer.detach().argmax(-1).numpy(), IGNORED)
        if labels is not None:
            targets = np.full(targets.shape, IGNORED, np.int64)
            for row, position in enumerate(positions):
                targets[row, : len(labels[position])] = labels[position]
        return _per_token(answer, torch.from_numpy(targets))

    return loss


def _per_token(answer: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(answer.reshape(-1, answer.shape[-1]), targets.reshape(-1), ignore_index=IGNORED, reduction="sum") / max(
        int((targets != IGNORED).sum()), 1
    )
