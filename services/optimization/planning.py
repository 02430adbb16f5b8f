"""From a job's specification to what its worker is handed, and to an estimate of what that will take."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.optimization import data as job_data
from services.optimization.advisor.goal import gates_for
from services.optimization.advisor.ladder import FORMATS
from services.optimization.advisor.scenarios import Original, check
from services.optimization.data import Data, check_disjoint, read
from services.optimization.estimating import Estimator, PlannedStep
from services.optimization.evaluation.metrics import Metric, metric_of
from services.optimization.examples import Examples
from services.optimization.failures import NotEnoughData
from services.optimization.history import HISTORY, History
from services.optimization.kept import KeptSteps
from services.optimization.plan import Plan, Teacher
from services.optimization.recipe import Kinds, Recipe, default_recipes, validate_recipes
from services.optimization.settings import OptimizationSettings
from services.optimization.spec import DataSource, Spec
from services.optimization.steps import Materials, Steps
from services.optimization.techniques import Model, find
from services.repository.datasets import Datasets
from services.repository.manifest import Format, Signature
from services.repository.references import BadName
from services.repository.store import Repository

# Assumed, as a technique's cost is before this machine has measured it: an estimate's order, no figure of a report.
_COMPARE_SECONDS_PER_EXAMPLE_AND_MB = 0.0002
_FOOTPRINT_SECONDS = 6.0  # a fresh process that imports an engine


class Refused(ValueError):
    """A specification that cannot become a job; `field` names where."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


@dataclass(frozen=True)
class PlannedRecipe:
    name: str
    steps: tuple[PlannedStep, ...]


@dataclass(frozen=True)
class Estimate:
    """What a job would do; warnings are sentences."""

    recipes: tuple[PlannedRecipe, ...]
    evaluation_seconds: float
    warnings: tuple[str, ...]

    @property
    def total_seconds(self) -> float:
        return self.evaluation_seconds + sum(step.seconds for recipe in self.recipes for step in recipe.steps)


def kinds_of(spec: Spec) -> Kinds:
    return Kinds(calibration=bool(spec.calibration), training=bool(spec.training))


def resolve(spec: Spec, signature: Signature, repository: Repository) -> Spec:
    """The specification with datasets and teacher by version, checked as far as can be without reading them.

    Raises Refused; UnknownDataset or UnknownModel for a reference to what is not there.
    """
    datasets = Datasets(repository.root)
    resolved: dict[str, Any] = {"teacher": _resolved_teacher(spec.teacher, signature, repository)}
    for kind in ("evaluation", "calibration", "training"):
        source: DataSource = getattr(spec, kind)
        resolved[kind] = _resolved(source, signature, datasets, kind)
    if not spec.evaluation:
        raise Refused("evaluation", "must not be empty: nothing is published unmeasured")
    _check_texts(spec)
    metric(spec, signature, repository)
    _check_recipes(spec, signature)
    return spec.model_copy(update=resolved)


def check_goal(spec: Spec, size_bytes: int) -> None:
    """Targets that contradict one another or cannot be met by an original of so many bytes are all told at once. Raises Refused."""
    if spec.goal is None:
        return
    goal = spec.goal
    found = check(goal.resolved, goal.preset.objective, Original(size_bytes=size_bytes), has_training=bool(spec.training))
    faults = [*found, *goal.contradictions()]
    if faults:
        others = (f"spec.goal.targets.{fault}" for fault in faults[1:])
        raise Refused(f"goal.targets.{faults[0].field}", "; ".join([faults[0].advice, *others]))


def _resolved_teacher(reference: str, signature: Signature, repository: Repository) -> str:
    if not reference:
        return ""
    try:
        manifest = repository.resolve(reference).manifest
    except BadName as error:
        raise Refused("teacher", str(error)) from error
    for what, wanted in (
        ("task", signature.task),
        ("labels", signature.labels),
        ("outputs", signature.outputs),
        ("format", Format.HUGGINGFACE),
    ):
        if getattr(manifest.signature, what) != wanted:
            raise Refused(
                "teacher", f"{manifest.reference} has other {what} than a teacher of this source: {_plain(manifest.signature, what)}"
            )
    return manifest.reference


def _plain(signature: Signature, what: str) -> str:
    """A signature's field for a sentence."""
    value = getattr(signature, what)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _resolved(source: DataSource, signature: Signature, datasets: Datasets, field: str) -> DataSource:
    try:
        manifest = datasets.resolve(source.dataset).manifest if source.dataset else None
        job_data.check(source, manifest, signature)
    except ValueError as error:  # BadName is one
        raise Refused(field, str(error)) from error
    return source.model_copy(update={"dataset": manifest.reference}) if manifest else source


def metric(spec: Spec, signature: Signature, repository: Repository) -> Metric:
    """That candidates are judged by. Raises Refused, UnknownDataset."""
    datasets = Datasets(repository.root)
    manifest = datasets.resolve(spec.evaluation.dataset).manifest if spec.evaluation.dataset else None
    labelled = job_data.check(spec.evaluation, manifest, signature) and bool(signature.labels)
    try:
        return metric_of(signature.task, spec.metric, labelled=labelled)
    except ValueError as error:
        raise Refused("metric", str(error)) from error


def _check_recipes(spec: Spec, signature: Signature) -> None:
    if spec.goal is not None:
        if spec.recipes:
            raise Refused("recipes", "a goal finds its own: name recipes or a goal, not both")
        if signature.format not in FORMATS:
            raise Refused("source", f"a search begins with a model in the format {' or '.join(FORMATS)}; this one is {signature.format}")
        return
    recipes = recipes_of(spec, signature)
    if not recipes:
        raise Refused("recipes", f"there are no defaults for a {signature.task} model in the format {signature.format}; name the steps")
    try:
        validate_recipes(recipes, signature, kinds_of(spec))
    except ValueError as error:
        field, _, reason = str(error).partition(": ")
        raise Refused(field, reason) from error


def _check_texts(spec: Spec) -> None:
    """A text seen twice is one example, and one that was calibrated or trained on proves nothing."""
    learnt = {*spec.training.texts, *spec.calibration.texts}
    for name, source, others in (
        ("training", spec.training, set()),
        ("calibration", spec.calibration, set()),
        ("evaluation", spec.evaluation, learnt),
    ):
        seen: set[str] = set(others)
        for index, text in enumerate(source.texts):
            if not text.strip() or text in seen:
                raise Refused(f"{name}.texts[{index}]", "must be neither empty nor the same as another text")
            seen.add(text)


def recipes_of(spec: Spec, signature: Signature) -> tuple[Recipe, ...]:
    """None where a goal is to find them."""
    return () if spec.goal is not None else spec.recipes or default_recipes(signature, kinds_of(spec))


def seconds(spec: Spec, settings: OptimizationSettings) -> float:
    """That the job may take; 0: as long as it takes."""
    return spec.budget.seconds or (settings.seconds_per_search if spec.goal is not None else settings.seconds_per_job)


def plan(spec: Spec, signature: Signature, repository: Repository, *, threads: int, evaluation_seconds: float) -> Plan:
    """What a worker carries out; `spec` is as `resolve` answered it. Raises UnknownDataset, UnknownModel, Damaged."""
    datasets = Datasets(repository.root)
    return Plan(
        recipes=recipes_of(spec, signature),
        evaluation=_data(spec.evaluation, datasets),
        calibration=_data(spec.calibration, datasets),
        training=_data(spec.training, datasets),
        teacher=_teacher(spec, repository),
        metric=spec.metric,
        goal=spec.goal,
        gates=gates_for(spec.goal, spec.gates, metric(spec, signature, repository)) if spec.goal else spec.gates,
        objective=spec.goal.preset.objective if spec.goal else spec.objective,
        seed=spec.seed,
        threads=threads,
        evaluation_seconds=evaluation_seconds,
    )


def _teacher(spec: Spec, repository: Repository) -> Teacher | None:
    if not spec.teacher:
        return None
    found = repository.resolve(spec.teacher)
    return Teacher(folder=found.folder, signature=found.manifest.signature)


def _data(source: DataSource, datasets: Datasets) -> Data:
    if not source.dataset:
        return Data(source=source)
    found = datasets.resolve(source.dataset)
    return Data(source=source, path=found.path, format=found.manifest.format)


def estimator(spec: Spec, original: Model, repository: Repository, kept_steps: Path) -> Estimator:
    """Reads the data, so that what does not fit is told now. `spec` is as `resolve` answered it. Raises Refused."""
    datasets = Datasets(repository.root)
    found = {kind: _examples(getattr(spec, kind), datasets, original.signature, kind) for kind in ("evaluation", "calibration", "training")}
    _check_disjoint(found)
    teacher = _teacher(spec, repository)
    taught_by = Model(teacher.folder, teacher.signature) if teacher else original
    materials = Materials(taught_by, found["calibration"], found["training"], spec.seed, threads=1)
    history = History(kept_steps / HISTORY)
    steps = Steps(materials, KeptSteps(kept_steps), history, kept_steps)
    return Estimator(original, materials, steps, history, found["evaluation"])


def estimate(spec: Spec, original: Model, repository: Repository, kept_steps: Path, evaluation_seconds: float) -> Estimate:
    """As `estimator`."""
    found = estimator(spec, original, repository, kept_steps)
    recipes = recipes_of(spec, original.signature)
    planned = tuple(PlannedRecipe(recipe.name, tuple(found.planned(recipe.steps))) for recipe in recipes)
    each = _COMPARE_SECONDS_PER_EXAMPLE_AND_MB * found.examples * found.megabytes + _FOOTPRINT_SECONDS
    return Estimate(planned, evaluation_seconds + (len(recipes) + 1) * each, tuple(_warnings(spec, recipes, found.examples)))


def _examples(source: DataSource, datasets: Datasets, signature: Signature, field: str) -> Examples:
    try:
        return read(_data(source, datasets), signature)
    except NotEnoughData as error:
        raise Refused(field, str(error)) from error


def _check_disjoint(found: Mapping[str, Examples]) -> None:
    try:
        check_disjoint(**found)
    except NotEnoughData as error:
        field, _, reason = str(error).partition(": ")
        raise Refused(field, reason) from error


def _warnings(spec: Spec, recipes: tuple[Recipe, ...], examples: int) -> Iterator[str]:
    if examples < spec.gates.min_examples:
        yield f"{examples} evaluation examples are fewer than {spec.gates.min_examples}, which the gates ask for: nothing will be accepted"
    for name in dict.fromkeys(step.technique for recipe in recipes for step in recipe.steps):
        if note := find(name).hardware_note():
            yield f"{name}: {note}"
