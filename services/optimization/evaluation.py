"""Candidates beside their original: same inputs, same machine, same run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from services import backends
from services.backends.text import Batch, pad
from services.optimization import fidelity, folder, footprint, latency
from services.optimization.failures import BadModel, NotEnoughData, Toolchain
from services.optimization.report import Interval, Measurement
from services.optimization.tokenization import encode
from services.repository.manifest import Signature, Task


@dataclass(frozen=True)
class Subject:
    """A model to be measured."""

    folder: Path
    signature: Signature


@dataclass(frozen=True)
class Timed:
    """Seconds of every round of every workload, the workloads in order."""

    workloads: tuple[latency.Workload, ...]
    seconds: tuple[tuple[float, ...], ...]

    def speedup_over(self, original: Self, seed: int) -> Interval:
        return latency.speedup(original.seconds, self.seconds, seed)


def build_batches(subject: Subject, texts: Sequence[str], workloads: Sequence[latency.Workload]) -> list[Batch]:
    """Full batches of real language: each row is the texts from another one on, joined and cut at the workload's length."""
    built = []
    for workload in workloads:
        rotated = [" ".join([*texts[start:], *texts[:start]]) for start in (row % len(texts) for row in range(workload.batch_rows))]
        cut = subject.signature.model_copy(update={"max_tokens": workload.tokens})
        built.append(pad(encode(subject.folder, cut, [text[: 40 * workload.tokens] for text in rotated]), cut))
    return built


def fitting(workloads: Sequence[latency.Workload], max_tokens: int) -> tuple[latency.Workload, ...]:
    """Those that the model can take, the longer ones cut; distinct."""
    cut = (latency.Workload(workload.batch_rows, min(workload.tokens, max_tokens or workload.tokens)) for workload in workloads)
    return tuple(dict.fromkeys(cut))


class Comparison:
    """An original and the candidates admitted beside it. A context manager: leaving it releases the models.

    Raises NotEnoughData without texts or for a tensor model, which texts cannot be fed to; BadModel when the original does not run.
    """

    def __init__(self, original: Subject, texts: Sequence[str], *, threads: int, seed: int) -> None:
        if original.signature.task is Task.TENSOR:
            raise NotEnoughData("a tensor model cannot be evaluated: a job brings texts, and named tensors cannot be made from them")
        if not texts:
            raise NotEnoughData("evaluation_texts: there are none, and nothing is compared without real inputs")
        self._original, self._texts = original, texts
        self._threads, self._seed = threads, seed
        self._rows = encode(original.folder, original.signature, texts)
        self._loaded: dict[str, tuple[Subject, backends.Backend]] = {}
        self._workloads = fitting(latency.WORKLOADS, original.signature.max_tokens)
        self._batches = build_batches(original, texts, self._workloads)
        try:
            self._reference = self._load("", original)
        except backends.BackendError as error:
            raise BadModel(f"the original does not run: {error}") from error

    def _load(self, name: str, subject: Subject) -> fidelity.Floats:
        """Keeps the model and answers what it says to the evaluation texts."""
        backend = backends.load(subject.folder, subject.signature, self._threads)
        try:
            found = fidelity.answers(backend, subject.signature, self._rows)
        except backends.BackendError:
            backend.close()
            raise
        self._loaded[name] = (subject, backend)
        return found

    def admit(self, name: str, subject: Subject) -> fidelity.Fidelity:
        """Loads a candidate and compares its answers. Raises Toolchain when it does not load or run."""
        try:
            found = self._load(name, subject)
        except backends.BackendError as error:
            raise Toolchain(f"the optimized model does not run: {error}") from error
        return fidelity.compare(self._original.signature.task, self._reference, found, self._seed)

    def measure_latency(self, budget_seconds: float) -> dict[str, Timed]:
        """Every admitted model by name, the original under "". The budget is spread evenly over workloads and models."""
        seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in self._loaded}
        for batch in self._batches:
            runs = [self._run(name, batch) for name in self._loaded]
            for name, rounds in zip(seconds, latency.take_turns(runs, budget_seconds / len(self._batches)), strict=True):
                seconds[name].append(tuple(rounds))
        return {name: Timed(self._workloads, tuple(rounds)) for name, rounds in seconds.items()}

    def _run(self, name: str, batch: Batch) -> latency.Run:
        subject, backend = self._loaded[name]
        inputs = {spec.name: batch[spec.name] for spec in subject.signature.inputs}
        outputs = [spec.name for spec in subject.signature.outputs]
        return lambda: backend.run(inputs, outputs)

    def measure_footprint(self, name: str, timed: Timed) -> Measurement:
        """Load time and memory in a process of their own, put together with what was timed. Raises Toolchain."""
        subject, _ = self._loaded[name]
        found = footprint.measure(subject.folder, subject.signature, self._threads, self._batches)
        workloads = (latency.summarize(workload, rounds) for workload, rounds in zip(timed.workloads, timed.seconds, strict=True))
        return Measurement(
            size_bytes=folder.size_bytes(subject.folder),
            load_seconds=found.load_seconds,
            workloads=tuple(workloads),
            memory_bytes=found.memory_bytes,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for _, backend in self._loaded.values():
            backend.close()
        self._loaded.clear()
