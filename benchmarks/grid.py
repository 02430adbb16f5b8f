"""Every recipe of the advisor's ladder made and measured once on a real model, as a search makes and measures them, and kept."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np

from benchmarks.replay import Cell, Table
from services.optimization.advisor.goal import Goal
from services.optimization.advisor.guess import Prior
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.search import Search
from services.optimization.advisor.seeking import Judge, Seeker, search_for
from services.optimization.environment import describe, usable_cores
from services.optimization.estimating import Estimator
from services.optimization.evaluation.comparison import Comparison
from services.optimization.evaluation.metrics import metric_of
from services.optimization.examples import Examples
from services.optimization.history import HISTORY, History
from services.optimization.kept import KeptSteps
from services.optimization.making import INFEASIBLE, Maker
from services.optimization.recipe import Gates, Kinds, Objective, Recipe, Step, parse_parameters
from services.optimization.report import Interval
from services.optimization.steps import Materials, Steps
from services.optimization.techniques import Model, find
from services.optimization.uploads.inspection import inspect_folder
from services.repository.manifest import Frozen, Signature

Pairs = Sequence[tuple[str, str]]
TEACHER = "the teacher's answers"
# Asks for what training learns from and learns next to nothing itself: every training after it finds the answers.
_TEACH = Step(technique="distill", parameters={"layers": 1, "training": {"max_steps": 1, "validation_share": 0}})
_ANY_LOSS = 1.0
_LEAST_EXAMPLES = 100


class Outcome(Frozen):
    """What a rung came to. `accepted` whatever it lost: goals differ in what they accept."""

    step_seconds: tuple[float, ...]  # of each step as it was made, by whichever rung came first
    measuring_seconds: float
    speedup: Interval | None
    size_ratio: float
    loss: Interval | None
    accepted: bool
    reason: str

    def __str__(self) -> str:
        if self.speedup is None:
            return self.reason
        lost = f", {100 * self.loss.estimate:.1f} points lost" if self.loss is not None else ""
        took = f"{sum(self.step_seconds):.0f} s of steps, {self.measuring_seconds:.0f} s to measure"
        return f"{self.speedup.estimate:.2f} times as fast, {self.size_ratio:.1f} times smaller{lost}; {took}"


class Entry(Frozen):
    rung: Rung  # with the seconds that were planned for it before anything was made
    outcome: Outcome | None = None

    def cell(self, teacher_seconds: float) -> Cell:
        """Raises ValueError before it was measured."""
        found = self.outcome
        if found is None:
            raise ValueError(f"{self.rung.name} was not measured")
        seconds = sum(found.step_seconds) + found.measuring_seconds
        trial = Trial(self.rung, found.speedup, found.size_ratio, found.loss, found.accepted, found.reason, seconds)
        shared = {TEACHER: teacher_seconds} if any(map(_is_taught, self.rung.steps)) else {}
        return Cell(self.rung, trial, found.step_seconds, found.measuring_seconds, shared)


class Grid(Frozen):
    """The ladder of one model, its priors by part, and what of it was measured."""

    environment: dict[str, object]
    training_rows: int
    held_out_rows: int
    row_seconds: float
    teacher_seconds: float
    priors: dict[str, Prior]
    entries: tuple[Entry, ...]

    def missing(self, only: Sequence[str]) -> list[Rung]:
        wanted = (entry for entry in self.entries if not only or set(only) & {*entry.rung.parts})
        return [entry.rung for entry in wanted if entry.outcome is None]

    def having(self, rung: Rung, outcome: Outcome) -> Self:
        """With what one rung came to."""
        entries = (Entry(rung=rung, outcome=outcome) if entry.rung.name == rung.name else entry for entry in self.entries)
        return self.model_copy(update={"entries": tuple(entries)})

    def table(self) -> Table:
        """Of what was measured."""
        return Table((entry.cell(self.teacher_seconds) for entry in self.entries if entry.outcome is not None), self.held_out_rows)

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        aside = path.with_suffix(".part")
        aside.write_text(self.model_dump_json(indent=1))
        aside.replace(path)


def _is_taught(step: Step) -> bool:
    return parse_parameters(find(step.technique), step, "step").uses_training()


@dataclass(frozen=True)
class Material:
    """The model, what smaller ones learn from and what all are judged by, and how long each trial is timed."""

    model: Path
    train: Pairs
    held_out: Pairs
    trial_seconds: float


def measured(folder: Path, material: Material, only: Sequence[str], say: Callable[[str], None]) -> Grid:
    """The grid, from `folder` as far as it lies there; what is missing is measured now, each rung kept when it is done.

    `only`: the rungs that have one of these parts; all of them without any. What each was planned to take is kept before the first is made.
    """
    path = folder / "grid.json"
    known = Grid.model_validate_json(path.read_bytes()) if path.exists() else None
    if known is not None and not known.missing(only):
        return known
    folder.mkdir(parents=True, exist_ok=True)
    with _workshop(folder.resolve(), material) as workshop:
        grid = known or workshop.planned()
        grid.save(path)
        if not grid.teacher_seconds:
            grid = grid.model_copy(update={"teacher_seconds": workshop.taught()})
        missing = grid.missing(only)
        for number, rung in enumerate(missing, start=1):
            outcome = workshop.tried(rung)
            grid = grid.having(rung, outcome)
            grid.save(path)
            say(f"{number} of {len(missing)}, {rung.name}: {outcome}")
    return grid


class _Workshop:
    """Where rungs are made and measured, by the code that a job's search runs."""

    def __init__(self, search: Search, maker: Maker, seeker: Seeker, facts: Grid) -> None:
        self._search, self._maker, self._seeker, self._facts = search, maker, seeker, facts

    def planned(self) -> Grid:
        """Nothing measured."""
        return self._facts.model_copy(update={"entries": tuple(Entry(rung=rung) for rung in self._search.left)})

    def taught(self) -> float:
        """Seconds until the teacher has answered what training learns from."""
        return self._maker.make(Recipe(name="teacher", steps=(_TEACH,)), 0.0, 0.0).seconds

    def tried(self, rung: Rung) -> Outcome:
        seconds = tuple(self._step_seconds(rung))
        trial = self._seeker.attempt(rung)
        return Outcome(
            step_seconds=seconds,
            measuring_seconds=trial.seconds,
            speedup=trial.speedup,
            size_ratio=trial.size_ratio,
            loss=trial.loss,
            accepted=trial.accepted,
            reason=trial.reason,
        )

    def _step_seconds(self, rung: Rung) -> Iterator[float]:
        """As long as steps can be made: what cannot is told by the attempt."""
        before = 0.0
        for count in range(1, len(rung.steps) + 1):
            try:
                made = self._maker.make(Recipe(name=rung.name, steps=rung.steps[:count]), 0.0, 0.0)
            except INFEASIBLE:
                return
            # A training that was killed and went on tells by itself how long it took in all.
            yield max(made.seconds - before, made.notes["steps"][-1].get("seconds", 0.0))
            before = made.seconds


@contextmanager
def _workshop(folder: Path, material: Material) -> Iterator[_Workshop]:
    source, threads = _source(folder, material.model), usable_cores()
    signature = source.signature
    training, evaluation = _examples(material.train, signature), _examples(material.held_out, signature)
    metric = metric_of(signature.task, None, labelled=True)
    gates = Gates(max_loss=_ANY_LOSS, min_examples=min(_LEAST_EXAMPLES, len(evaluation)))
    kept = KeptSteps(folder / "kept")
    history = History(folder / "kept" / HISTORY)
    shared = Materials(source, Examples(), training, seed=0, threads=threads)
    with TemporaryDirectory(prefix="hone-") as scratch, Comparison(source, evaluation, threads=threads, seed=0) as comparison:
        steps = Steps(shared, kept, history, Path(scratch))
        maker = Maker(source, steps, lambda *_, **__: None, float("inf"))
        estimator = Estimator(source, shared, steps, history, evaluation)
        row_seconds = comparison.row_seconds()
        search = search_for(Goal(), metric, gates.for_metric(metric), Kinds(calibration=False), estimator, row_seconds)
        judge = Judge(metric, gates, Objective.THROUGHPUT, 0, material.trial_seconds)
        seeker = Seeker(search, maker, comparison, judge, lambda share, line: None, lambda model: None)
        facts = Grid(
            environment=describe(threads),
            training_rows=len(training),
            held_out_rows=len(evaluation),
            row_seconds=row_seconds,
            teacher_seconds=0.0,
            priors=dict(search.priors),
            entries=(),
        )
        try:
            yield _Workshop(search, maker, seeker, facts)
        finally:
            kept.close()


def _source(folder: Path, model: Path) -> Model:
    """The model without what no version of one holds."""
    copied = folder / "model"
    if not copied.exists():
        shutil.copytree(model, copied, ignore=shutil.ignore_patterns(".*"))
    return Model(copied, inspect_folder(copied))


def _examples(pairs: Pairs, signature: Signature) -> Examples:
    texts, labels = zip(*pairs, strict=True)
    return Examples(texts=texts, labels=np.array([signature.labels.index(label) for label in labels], np.int64))
