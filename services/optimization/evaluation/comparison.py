"""Candidates beside their original: same inputs, same machine, same run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np

from services import backends
from services.optimization import folder
from services.optimization.evaluation import answers, fidelity, footprint, latency
from services.optimization.evaluation.fidelity import Fidelity
from services.optimization.evaluation.metrics import Metric
from services.optimization.evaluation.quality import Truth, qualities
from services.optimization.evaluation.remembered import recall
from services.optimization.examples import Examples
from services.optimization.failures import BadModel, NotEnoughData, OptimizationFailure, Toolchain, UnsupportedOperator
from services.optimization.remembered import NOTHING, Remembered
from services.optimization.report import Interval, Measurement, Quality
from services.optimization.rows import Batch, Rows, TextRows, prepare
from services.optimization.techniques import Model
from services.repository.manifest import Task

_TIMED_ROWS, _TIMED_BATCH = 128, 32  # of a rough measurement
_CHARACTERS_PER_TOKEN = 40  # ample, so that a row is as long as its workload says


@dataclass(frozen=True)
class Timed:
    """Seconds of every round of every workload, the workloads in order."""

    workloads: tuple[latency.Workload, ...]
    seconds: tuple[tuple[float, ...], ...]

    def speedup_over(self, original: Self, seed: int) -> Interval:
        return latency.speedup(original.seconds, self.seconds, seed)


@dataclass(frozen=True)
class Compared:
    """What a candidate says beside its original."""

    fidelity: Fidelity
    qualities: tuple[Quality, ...]
    is_finite: bool

    def quality(self, metric: Metric) -> Quality | None:
        return next((found for found in self.qualities if found.metric is metric), None)


def text_batches(model: Model, texts: Sequence[str], workloads: Sequence[latency.Workload]) -> list[Batch]:
    """Full batches of real language: each row is the texts from another one on, joined and cut at the workload's length."""
    built = []
    for workload in workloads:
        cut = model.signature.model_copy(update={"max_tokens": workload.tokens})
        joined = tuple(_joined(texts, row, _CHARACTERS_PER_TOKEN * workload.tokens) for row in range(workload.batch_rows))
        rows = prepare(model.folder, cut, Examples(texts=joined))
        built.append(rows.batch(range(len(rows))))
    return built


def _joined(texts: Sequence[str], start: int, characters: int) -> str:
    """The texts from one on, from the first again after the last, until there are so many characters: no more are ever tokenized."""
    found: list[str] = []
    length = 0
    while length < characters:
        found.append(texts[(start + len(found)) % len(texts)])
        length += len(found[-1]) + 1
    return " ".join(found)[:characters]


def array_batches(rows: Rows, workloads: Sequence[latency.Workload]) -> list[Batch]:
    return [rows.batch([index % len(rows) for index in range(workload.batch_rows)]) for workload in workloads]


def fitting(workloads: Sequence[latency.Workload], max_tokens: int) -> tuple[latency.Workload, ...]:
    """Those that the model can take, the longer ones cut; distinct."""
    cut = (latency.Workload(workload.batch_rows, min(workload.tokens, max_tokens or workload.tokens)) for workload in workloads)
    return tuple(dict.fromkeys(cut))


def check_reference(task: Task, reference: answers.Answers) -> None:
    """Whether the original's answers can be compared with at all. Raises BadModel, NotEnoughData."""
    if not reference.is_finite:
        raise BadModel("the original answers NaN or infinity to the evaluation examples: nothing can be compared with it")
    if task is Task.CAUSAL_LM and not any(len(losses) for losses in reference.losses):
        raise NotEnoughData("evaluation: every text is a single token, and a language model is judged by the next one")


class Comparison:
    """An original and the candidates admitted beside it. A context manager: leaving it releases the models.

    Raises NotEnoughData without examples, or for examples of another kind than the model's inputs; BadModel when the original
    does not run or answers no numbers.
    """

    def __init__(self, original: Model, examples: Examples, *, threads: int, seed: int, remembered: Remembered = NOTHING) -> None:
        if not len(examples):
            raise NotEnoughData("evaluation: there are no examples, and nothing is compared without real inputs")
        self._original = original
        self._threads, self._seed = threads, seed
        self._examples, self._remembered = examples, remembered
        self._rows = prepare(original.folder, original.signature, examples, remembered)
        token_labels = self._rows.labels if isinstance(self._rows, TextRows) else None
        self._truth = Truth(examples.labels, token_labels)
        self._loaded: dict[str, tuple[Model, backends.Backend]] = {}
        self._workloads, self._batches = self._build(examples)
        try:
            self._reference = self._load("", original)
        except backends.BackendError as error:
            raise BadModel(f"the original does not run: {error}") from error
        try:
            check_reference(original.signature.task, self._reference)
        except OptimizationFailure:
            self.release("")
            raise

    def _build(self, examples: Examples) -> tuple[tuple[latency.Workload, ...], list[Batch]]:
        signature = self._original.signature
        if not signature.task.takes_text:
            return latency.ARRAY_WORKLOADS, array_batches(self._rows, latency.ARRAY_WORKLOADS)
        workloads = fitting(latency.TEXT_WORKLOADS, signature.max_tokens)
        texts = examples.texts or tuple(" ".join(words) for words in examples.words)
        return workloads, text_batches(self._original, texts, workloads)

    def _load(self, name: str, model: Model) -> answers.Answers:
        """Keeps the model and answers what it says to the evaluation examples. Every workload is tried: later it is too late to refuse."""
        backend = backends.load(model.folder, model.signature, self._threads)
        try:
            compute = partial(answers.answers, backend, model.signature, self._rows)
            found = recall(self._remembered, model, self._examples, self._rows, self._threads, compute)
            for batch in self._batches:
                _run(model, backend, batch)()
        except backends.BackendError:
            backend.close()
            raise
        self._loaded[name] = (model, backend)
        return found

    @property
    def original_bytes(self) -> int:
        return folder.size_bytes(self._original.folder)

    def row_seconds(self) -> float:
        """Of the original's answer to one of the examples, in batches of those like it in length; roughly, from a few of them."""
        model, backend = self._loaded[""]
        order = np.argsort(self._rows.lengths, kind="stable")[:: max(1, len(self._rows) // _TIMED_ROWS)][:_TIMED_ROWS]
        parts = [self._rows.batch(list(order[start : start + _TIMED_BATCH])) for start in range(0, len(order), _TIMED_BATCH)]
        begun = time.perf_counter()
        for batch in parts:
            _run(model, backend, batch)()
        return (time.perf_counter() - begun) / len(order)

    def admit(self, name: str, candidate: Model) -> Compared:
        """Loads a candidate and compares its answers.

        Raises Toolchain when it does not load or run, UnsupportedOperator when its answers are of another width than the original's.
        """
        try:
            found = self._load(name, candidate)
        except backends.BackendError as error:
            raise Toolchain(f"the optimized model does not run: {error}") from error
        if found.vectors is not None and self._reference.vectors is not None and found.vectors.shape != self._reference.vectors.shape:
            self.release(name)
            widths = f"{found.vectors.shape[1]} values where the original answers {self._reference.vectors.shape[1]}"
            raise UnsupportedOperator(f"the optimized model answers {widths}: it cannot stand in for it")
        task = self._original.signature.task
        if not found.is_finite:
            return Compared(fidelity.compare(task, self._reference, found, self._seed), (), is_finite=False)
        measured = qualities(task, self._truth, self._reference, found, self._seed)
        return Compared(fidelity.compare(task, self._reference, found, self._seed), measured, is_finite=True)

    def measure_latency(self, budget_seconds: float) -> dict[str, Timed]:
        """Every admitted model by name, the original under "". The budget is spread evenly over workloads and models."""
        seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in self._loaded}
        for batch in self._batches:
            runs = [_run(model, backend, batch) for model, backend in self._loaded.values()]
            for name, rounds in zip(seconds, latency.take_turns(runs, budget_seconds / len(self._batches)), strict=True):
                seconds[name].append(tuple(rounds))
        return {name: Timed(self._workloads, tuple(rounds)) for name, rounds in seconds.items()}

    def measure_footprint(self, name: str, timed: Timed) -> Measurement:
        """Load time and memory in a process of their own, put together with what was timed. Raises Toolchain."""
        model, _ = self._loaded[name]
        found = footprint.measure(model.folder, model.signature, self._threads, self._batches)
        workloads = (latency.summarize(workload, rounds) for workload, rounds in zip(timed.workloads, timed.seconds, strict=True))
        return Measurement(
            size_bytes=folder.size_bytes(model.folder),
            load_seconds=found.load_seconds,
            workloads=tuple(workloads),
            memory_bytes=found.memory_bytes,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name in list(self._loaded):
            self.release(name)

    def release(self, name: str) -> None:
        """Unloads an admitted model: it takes part in nothing any more."""
        _, backend = self._loaded.pop(name)
        backend.close()


def _run(model: Model, backend: backends.Backend, batch: Batch) -> latency.Run:
    inputs = {spec.name: batch[spec.name] for spec in model.signature.inputs}
    outputs = [spec.name for spec in model.signature.outputs]
    return lambda: backend.run(inputs, outputs)
