"""What trials measured on this machine, kept for later searches: one JSON line per trial, without texts or names of models.

What cannot be made is not kept: it has no figures, and is found out again in seconds.
"""

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import structlog
from pydantic import ValidationError

from services.optimization.advisor.anatomy import anatomy_of
from services.optimization.advisor.observation import Context, Observation
from services.optimization.advisor.rung import Trial
from services.optimization.environment import cpu_features, cpu_model, library_versions
from services.optimization.estimating import Estimator
from services.optimization.evaluation.metrics import Metric
from services.optimization.folder import content_digest
from services.optimization.kept import digest_of
from services.repository.manifest import Format, Frozen, Signature, Task

log = structlog.get_logger("hone.jobs")

EXPERIENCE = "experience.jsonl"
MOST_LINES = 500  # that are read; the file is trimmed to so many when it holds twice as many
_SECONDS_PER_DAY = 86_400


class Machine(Frozen):
    """What decides how fast a precision is. Another one's speeds say nothing of this one's, and where 8-bit sums saturate not even its
    losses do: its lines are passed over, whoever else writes into a shared folder."""

    cpu_model: str
    cpu_features: tuple[str, ...]

    @classmethod
    def here(cls) -> Self:
        return cls(cpu_model=cpu_model(), cpu_features=tuple(sorted(cpu_features())))


class _Line(Frozen):
    machine: Machine
    task: Task
    format: Format
    evidence: Observation
    is_shape: bool
    accepted: bool
    seconds: float


class Experience:
    """Of models of one task and format on one machine: parts mean the same to them. Several jobs may use the file at once.

    A line torn by a kill is passed over, and so is one that this version does not understand.
    """

    def __init__(
        self, path: Path, signature: Signature, here: Context, machine: Machine | None = None, most_lines: int = MOST_LINES
    ) -> None:
        """`here` is where trials are made now, `machine` this one if it is not told."""
        self.here = here
        self._path, self._most_lines = path, most_lines
        self._machine = machine or Machine.here()
        self._task, self._format = signature.task, signature.format

    def evidence(self) -> list[Observation]:
        """The oldest first."""
        return [
            line.evidence for line in self._lines() if (line.machine, line.task, line.format) == (self._machine, self._task, self._format)
        ]

    def add(self, trial: Trial) -> None:
        """What cannot be written down ends no search: it is logged, and the next one knows less."""
        found = Observation.of(trial, self.here)
        if found is None:
            return
        try:
            self._append(self._line(trial, found))
        except OSError as error:
            log.warning("a trial could not be kept for later searches", reason=str(error))

    def add_all(self, trials: Iterable[Trial]) -> None:
        for trial in trials:
            self.add(trial)

    def _line(self, trial: Trial, found: Observation) -> bytes:
        line = _Line(
            machine=self._machine,
            task=self._task,
            format=self._format,
            evidence=found,
            is_shape=trial.rung.is_shape,
            accepted=trial.accepted,
            seconds=trial.seconds,
        )
        return line.model_dump_json().encode() + b"\n"

    def _lines(self) -> Iterator[_Line]:
        with suppress(FileNotFoundError):
            for line in self._path.read_bytes().splitlines()[-self._most_lines :]:
                with suppress(ValidationError):
                    yield _Line.model_validate_json(line)

    def _append(self, line: bytes) -> None:
        """In one write; a torn line before it is ended first, or it would take this one along."""
        with _alone(self._path) as descriptor:
            end = os.fstat(descriptor).st_size
            torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
            os.write(descriptor, b"\n" * torn + line)
            self._trim()

    def _trim(self) -> None:
        lines = self._path.read_bytes().splitlines(keepends=True)
        if len(lines) > 2 * self._most_lines:
            aside = self._path.with_suffix(".part")
            aside.write_bytes(b"".join(lines[-self._most_lines :]))
            aside.replace(self._path)


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    """A descriptor to append to the file, held against other processes. It is opened anew where one of them has just replaced it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def context_of(estimator: Estimator, metric: Metric, threads: int) -> Context:
    """Of a search that is begun now on the estimator's original."""
    original = estimator.original
    anatomy = anatomy_of(original.folder)
    return Context(
        model=content_digest(original.folder, original.signature),
        megabytes=estimator.megabytes,
        layers=anatomy.layers,
        hidden_size=anatomy.hidden_size,
        data=estimator.data_digest,
        characters=estimator.evaluation.median_characters,
        training_rows=estimator.training_rows,
        threads=threads,
        libraries=digest_of(dict(library_versions())),
        metric=metric,
        day=time.time() / _SECONDS_PER_DAY,
    )
