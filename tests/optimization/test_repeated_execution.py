"""A job carried out again where no step is kept, as on another machine: the cache spares what is expensive."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.optimization.evaluation.footprint import Footprint
from services.optimization.execution import Execution, execute
from services.optimization.plan import Plan
from services.optimization.recipe import Recipe, Step
from services.optimization.techniques import Model
from services.repository.manifest import Task
from tests.optimization.fake_cache import FakeCache, remembering
from tests.optimization.test_execution import ignore, of_texts, plan
from tests.optimization.training.tiny_models import build, sentences

TEXTS = tuple(dict.fromkeys(sentences(120).texts))
EXPENSIVE = (
    "services.optimization.evaluation.answers.answers",  # a model over the evaluation examples
    "services.optimization.evaluation.fidelity.answers",  # a model over the calibration examples
    "services.optimization.training.teacher.load_teacher",
    "services.optimization.techniques.quantization.calibration.collect",
    "services.optimization.techniques.sensitivity.measure",
    "services.optimization.rows.read_tokenizer",
)
MEASURED = ("seconds", "curves", "teacher_outputs")  # of a training's notes; curves tell of speed, too


@contextmanager
def counting() -> Iterator[Counter[str]]:
    calls: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for path in EXPENSIVE:
            module, _, name = path.rpartition(".")
            place = module.rpartition(".")[2]
            patch.setattr(path, _counted(calls, f"{place}.{name}", getattr(__import__(module, fromlist=[name]), name)))
        patch.setattr("services.optimization.evaluation.footprint.measure", lambda *_: Footprint(load_seconds=0.1, memory_bytes=1))
        yield calls


def _counted(calls: Counter[str], name: str, function: Any) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return function(*args, **kwargs)

    return counted


def job(epochs: int = 0, exclude: tuple[str, ...] = ()) -> Plan:
    """One recipe trains unless `epochs` is 0."""
    training = {"epochs": epochs, "batch_rows": 16}
    distilled = Recipe(name="distilled", steps=(Step(technique="distill", parameters={"layers": 1, "training": training}),))
    quantize = Step(technique="static_int8", parameters={"reduce_range": False, "target_fidelity": 0.9, "exclude": list(exclude)})
    quantized = Recipe(name="quantized", steps=(Step(technique="export_onnx"), quantize))
    return plan(
        *([distilled] if epochs else []),
        quantized,
        evaluation=of_texts(TEXTS[:40]),
        calibration=of_texts(TEXTS[40:60]),
        training=of_texts(TEXTS[60:100]),
        evaluation_seconds=0.05,
    )


class Machine:
    """Keeps nothing between two jobs but what lies in the cache, which it shares."""

    def __init__(self, root: Path, cache: FakeCache) -> None:
        self._root, self._cache, self._jobs = root, cache, 0
        self._original: Model = build(root / "original", Task.EMBEDDING)

    def run(self, plan: Plan) -> tuple[Execution, Counter[str]]:
        self._jobs += 1
        scratch, kept = (self._root / f"{name}-{self._jobs}" for name in ("scratch", "kept"))
        scratch.mkdir()
        remembered = remembering(self._cache, "optimization/m@1")
        with counting() as calls:
            done = execute(plan, self._original.folder, self._original.signature, scratch, kept, ignore, None, remembered)
        return done, calls


def told(done: Execution) -> list[Any]:
    """What a report says of answers and of steps, without what a clock measures."""
    found = []
    for candidate in done.report.candidates:
        steps = [{key: value for key, value in step.items() if key not in MEASURED} for step in candidate.notes["steps"]]
        found.append((candidate.name, candidate.fidelity, candidate.min_fidelity, steps))
    return found


@pytest.fixture
def cache() -> FakeCache:
    return FakeCache()


@pytest.fixture
def machine(tmp_path: Path, cache: FakeCache) -> Machine:
    return Machine(tmp_path, cache)


def test_a_repeated_job_runs_no_model_over_what_is_known(machine: Machine) -> None:
    first, calls = machine.run(job(epochs=1))
    assert calls["answers.answers"] == 3  # the original and two candidates
    assert calls["teacher.load_teacher"] == calls["calibration.collect"] == calls["sensitivity.measure"] == 1
    assert calls["fidelity.answers"] == 2  # the source and a trial
    second, again = machine.run(job(epochs=1))
    assert set(again) == {"rows.read_tokenizer"}  # so few texts are not worth a lookup
    assert told(second) == told(first)
    third, changed = machine.run(job(epochs=2, exclude=("*query*",)))
    assert changed["teacher.load_teacher"] == changed["calibration.collect"] == changed["sensitivity.measure"] == 0
    assert changed["answers.answers"] == 2  # the candidates are others
    assert changed["fidelity.answers"] == 1  # the trial is another
    assert len(third.report.candidates[1].notes["steps"][1]["excluded"]) == 2


def test_a_cache_that_is_full_damaged_away_or_dying_changes_no_result(machine: Machine, cache: FakeCache) -> None:
    cache.is_full = True
    first, calls = machine.run(job())
    cache.is_full = False
    assert machine.run(job())[1] == calls
    whole, cache.kept = cache.kept, {name: value[::-1] for name, value in cache.kept.items()}
    damaged, again = machine.run(job())
    assert (told(damaged), again) == (told(first), calls)
    for fault_after in (0, 3):
        cache.kept, cache.calls, cache.fault_after = dict(whole), 0, fault_after
        assert told(machine.run(job())[0]) == told(first)
        assert cache.calls == fault_after + 1
