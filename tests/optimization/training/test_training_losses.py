import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from services.optimization.training import losses

Floats = NDArray[np.float64]
LOGITS = arrays(np.float64, (5, 3), elements=st.floats(-20, 20))
VECTORS = arrays(np.float64, (4, 6), elements=st.floats(-3, 3))
TEMPERATURES = st.floats(0.25, 10)


def log_softmax(values: Floats) -> Floats:
    shifted = values - values.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@given(LOGITS, LOGITS, st.lists(st.integers(0, 2), min_size=5, max_size=5), TEMPERATURES, st.floats(0, 1))
def test_distillation_is_the_formula(student: Floats, teacher: Floats, labels: list[int], temperature: float, alpha: float) -> None:
    known, found = log_softmax(teacher / temperature), log_softmax(student / temperature)
    divergence = (np.exp(known) * (known - found)).sum()
    entropy = -log_softmax(student)[np.arange(5), labels].sum()
    wanted = alpha * temperature**2 * divergence + (1 - alpha) * entropy
    answer = losses.distillation(torch.from_numpy(student), torch.from_numpy(teacher), torch.tensor(labels), temperature, alpha)
    assert float(answer) == pytest.approx(wanted, rel=1e-9, abs=1e-7)


@given(LOGITS, TEMPERATURES)
def test_an_equal_student_is_at_no_distance(logits: Floats, temperature: float) -> None:
    answer = losses.distillation(torch.from_numpy(logits), torch.from_numpy(logits), None, temperature, 1.0)
    assert float(answer) == pytest.approx(0, abs=1e-9)


@given(LOGITS, LOGITS, st.integers(1, 4))
def test_batches_add_up_to_their_union(student: Floats, teacher: Floats, cut: int) -> None:
    own, known, labels = torch.from_numpy(student), torch.from_numpy(teacher), torch.tensor([0, 1, 2, 0, 1])
    whole = losses.distillation(own, known, labels, 2.0, 0.3)
    parts = [losses.distillation(own[part], known[part], labels[part], 2.0, 0.3) for part in (slice(cut), slice(cut, None))]
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-9, abs=1e-9)


def test_embedding_weighs_vectors_against_similarities() -> None:
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    turned = torch.tensor([[0.0, 2.0], [-2.0, 0.0]])  # every vector is elsewhere, their relations are the same
    assert float(losses.embedding(turned, teacher, 1.0)) == pytest.approx(2.0)
    assert float(losses.embedding(turned, teacher, 0.0)) == pytest.approx(0.0, abs=1e-6)
    joined = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert float(losses.embedding(joined, teacher, 0.0)) == pytest.approx(2 * (0 + 1 + 1 + 0) / 4)


def test_hidden_counts_only_what_the_mask_counts() -> None:
    student, teacher = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 1.0], [2.0, 0.0], [9.0, 9.0]]])
    assert float(losses.hidden(student, teacher, torch.tensor([[1.0, 1.0, 0.0]]))) == pytest.approx(1 + 2)


def relation_by_hand(student: Floats, teacher: Floats, heads: int) -> float:
    total = 0.0
    for own, known in zip(np.split(student, heads, -1), np.split(teacher, heads, -1), strict=True):
        found, wanted = (log_softmax(part @ part.T / np.sqrt(part.shape[1])) for part in (own, known))
        total += (np.exp(wanted) * (wanted - found)).sum() / heads
    return total


@given(VECTORS, VECTORS, st.sampled_from([1, 2, 3]))
def test_relation_is_the_formula_whatever_is_padded(student: Floats, teacher: Floats, heads: int) -> None:
    mask = torch.tensor([[1.0] * 4 + [0.0] * 2], dtype=torch.float64)
    padded = [torch.from_numpy(np.concatenate([values, np.full((2, 6), fill)]))[None] for values, fill in ((student, 7), (teacher, -5))]
    answer = losses.relation(padded[0], padded[1], mask, heads)
    assert float(answer) == pytest.approx(relation_by_hand(student, teacher, heads), rel=1e-6, abs=1e-9)


@given(st.integers(1, 1024), st.integers(1, 1024), st.integers(1, 64))
def test_relation_heads_cut_both_widths(teacher: int, student: int, most: int) -> None:
    heads = losses.relation_heads(teacher, student, most)
    assert 1 <= heads <= most
    assert teacher % heads == student % heads == 0
    assert not any(teacher % more == student % more == 0 for more in range(heads + 1, most + 1))
