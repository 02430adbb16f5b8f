"""What answers are judged by."""

from enum import StrEnum

from services.repository.manifest import Task


class Metric(StrEnum):
    """What answers are judged by; the contract's names."""

    ACCURACY = "ACCURACY"
    MACRO_F1 = "MACRO_F1"
    PERPLEXITY = "PERPLEXITY"
    FIDELITY = "FIDELITY"

    @property
    def lower_is_better(self) -> bool:
        return self is Metric.PERPLEXITY


_LABELLED = frozenset({Task.CLASSIFICATION, Task.IMAGE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION})


def metric_of(task: Task, asked: Metric | None, *, labelled: bool) -> Metric:
    """The metric to judge by; the task's own when none was asked for. Raises ValueError for one that cannot be computed."""
    if asked in (Metric.ACCURACY, Metric.MACRO_F1) and not (labelled and task in _LABELLED):
        raise ValueError(f"{asked} needs a classification task and labelled evaluation examples")
    if asked is Metric.PERPLEXITY and task is not Task.CAUSAL_LM:
        raise ValueError(f"{asked} is for causal language models")
    if asked is not None:
        return asked
    if task is Task.CAUSAL_LM:
        return Metric.PERPLEXITY
    if not labelled or task not in _LABELLED:
        return Metric.FIDELITY
    return Metric.MACRO_F1 if task is Task.TOKEN_CLASSIFICATION else Metric.ACCURACY
