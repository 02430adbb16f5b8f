"""What is minimised. Every function answers a sum over its items, so that batches add up to exactly their union."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def distillation(student: Tensor, teacher: Tensor | None, labels: Tensor | None, temperature: float, alpha: float) -> Tensor:
    """Sum over n of `alpha * T^2 * KL(teacher || student at T) + (1 - alpha) * CE(labels)`; Hinton et al. 2015, arXiv 1503.02531.

    `student` and `teacher` are logits [n, classes], `labels` INT64 [n]. A part without its `teacher` or `labels` counts for nothing.
    """
    total = student.new_zeros(())
    if teacher is not None and alpha > 0:
        known = functional.log_softmax(teacher / temperature, dim=-1)
        found = functional.log_softmax(student / temperature, dim=-1)
        total = total + alpha * temperature**2 * functional.kl_div(found, known, reduction="sum", log_target=True)
    if labels is not None and alpha < 1:
        total = total + (1 - alpha) * functional.cross_entropy(student, labels, reduction="sum")
    return total


def embedding(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """Sum over n of `alpha * (1 - cosine) + (1 - alpha) * d`, d the mean squared difference of the two cosine matrices [n, n].

    `student` and `teacher` are vectors [n, dimensions]. The matrices hold the batch's own pairs, whatever is accumulated.
    """
    own, known = functional.normalize(student, dim=1), functional.normalize(teacher, dim=1)
    apart = (1 - (own * known).sum(1)).sum()
    similarity = (own @ own.T - known @ known.T).square().mean() * len(student)
    return alpha * apart + (1 - alpha) * similarity


def hidden(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens that `mask` [rows, tokens] counts of the mean squared difference of [rows, tokens, width]."""
    return ((student - teacher).square().mean(-1) * mask).sum()


def relation_heads(teacher_width: int, student_width: int, most: int) -> int:
    """The largest number of heads, at most `most`, into which both widths can be cut."""
    shared = math.gcd(teacher_width, student_width)
    return max(heads for heads in range(1, most + 1) if shared % heads == 0)


def relation(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Sum over counted tokens of KL(teacher || student) between the rows of softmax(X X^T / sqrt(d)), the mean over `heads`.

    MiniLMv2's self-attention relation (Wang et al. 2021, arXiv 2012.15828). X is a layer's queries, keys or values,
    [rows, tokens, width]: cutting their width anew into `heads` of d makes models of different heads and widths comparable.
    """
    found, known = _relations(student, mask, heads), _relations(teacher, mask, heads)
    # Padding columns are zero in the teacher's relation, and -inf in both logarithms: 0 * (-inf + inf) is no number.
    divergence = (known.exp() * (known - found).masked_fill(~mask.bool()[:, None, None], 0)).sum(-1)
    return (divergence.mean(1) * mask).sum()


def _relations(vectors: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Log-softmax [rows, heads, tokens, tokens]."""
    rows, tokens, width = vectors.shape
    cut = vectors.view(rows, tokens, heads, width // heads).transpose(1, 2)
    scores = cut @ cut.transpose(2, 3) / math.sqrt(width // heads)
    scores = scores.masked_fill(~mask.bool()[:, None, None], torch.finfo(scores.dtype).min)
    return functional.log_softmax(scores, dim=-1)
