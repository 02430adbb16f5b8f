"""Between the job contract's messages and our own values."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from hone.optimization.v1 import jobs_pb2 as pb

from services.chassis.faults import InvalidField
from services.optimization import goal_wire
from services.optimization.conversion import checked, struct, timestamp
from services.optimization.estimating import PlannedStep
from services.optimization.evaluation.metrics import Metric
from services.optimization.interval_wire import interval_message
from services.optimization.jobs.job import Event, Job, State
from services.optimization.planning import Estimate
from services.optimization.recipe import Gates, Objective
from services.optimization.report import Candidate, Measurement, Quality, Report
from services.optimization.spec import Budget, DataSource, Spec
from services.optimization.techniques import Technique

_OBJECTIVES = {pb.OBJECTIVE_UNSPECIFIED: Objective.THROUGHPUT, pb.OBJECTIVE_THROUGHPUT: Objective.THROUGHPUT} | {
    pb.OBJECTIVE_LATENCY: Objective.LATENCY,
    pb.OBJECTIVE_SIZE: Objective.SIZE,
}
_METRIC_NUMBERS: Mapping[Metric | None, "pb.Metric.ValueType"] = {None: pb.METRIC_UNSPECIFIED} | {
    Metric.ACCURACY: pb.METRIC_ACCURACY,
    Metric.MACRO_F1: pb.METRIC_MACRO_F1,
    Metric.PERPLEXITY: pb.METRIC_PERPLEXITY,
    Metric.FIDELITY: pb.METRIC_FIDELITY,
}
_METRICS = {number: metric for metric, number in _METRIC_NUMBERS.items()}
DATA_KINDS = ("evaluation", "calibration", "training")


def spec_from(message: pb.JobSpec) -> Spec:
    """Raises InvalidField."""
    if message.objective not in _OBJECTIVES:
        raise InvalidField("spec.objective", f"{message.objective} is not an objective")
    if message.metric not in _METRICS:
        raise InvalidField("spec.metric", f"{message.metric} is not a metric")
    goal = goal_wire.goal_from(message.goal, "spec.goal") if message.HasField("goal") else None
    recipes = [
        {"name": recipe.name, "steps": [_step(step, f"spec.recipes[{i}].steps[{j}]") for j, step in enumerate(recipe.steps)]}
        for i, recipe in enumerate(message.recipes)
    ]
    return checked(
        "spec",
        lambda: Spec.model_validate(
            {
                "source": message.source,
                "recipes": recipes,
                **{kind: _data(getattr(message, kind)) for kind in DATA_KINDS},
                "metric": _METRICS[message.metric],
                "budget": {name: getattr(message.budget, name) for name in Budget.model_fields},
                "gates": {name: getattr(message.gates, name) for name in Gates.model_fields if message.gates.HasField(name)},  # type: ignore[arg-type]
                "objective": _OBJECTIVES[message.objective],
                "publish": {"name": message.publish.name, "channels": tuple(message.publish.channels)},
                "seed": message.seed,
                "teacher": message.teacher,
                "goal": goal,
            }
        ),
    )


def _data(message: pb.Data) -> dict[str, Any]:
    return {
        "dataset": message.dataset,
        "texts": tuple(message.texts),
        "labels": tuple(message.labels),
        "label_column": message.label_column,
        "max_rows": message.max_rows,
    }


def _data_message(source: DataSource, *, brief: bool) -> pb.Data | None:
    if not source:
        return None
    return pb.Data(**source.model_dump(exclude={"texts", "labels"} if brief else set()))


def _step(step: pb.Step, field: str) -> dict[str, Any]:
    try:
        parameters = json_format.MessageToDict(step.parameters)
    except (ValueError, json_format.Error) as error:  # infinity or NaN
        raise InvalidField(f"{field}.parameters", "must be plain JSON") from error
    return {"technique": step.technique, "parameters": {name: _whole(value) for name, value in parameters.items()}}


def _whole(value: Any) -> Any:
    """A Struct knows doubles only; a whole one is an integer again."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(entry) for name, entry in value.items()}
    return [_whole(entry) for entry in value] if isinstance(value, list) else value


def job_message(job: Job, *, brief: bool = False) -> pb.Job:
    """`brief` leaves out the report and the texts."""
    spec = Spec.model_validate_json(job.spec)
    return pb.Job(
        id=job.id,
        spec=_spec_message(spec, brief=brief),
        state=pb.JobState.Value(f"JOB_STATE_{job.state}"),
        created=timestamp(job.created),
        started=timestamp(job.started),
        ended=timestamp(job.ended),
        failure=_failure(job),
        report=report_message(Report.model_validate_json(job.report)) if job.report and not brief else None,
        published=job.published,
        last_sequence=job.last_sequence,
    )


def _failure(job: Job) -> pb.Failure | None:
    if job.state is not State.FAILED:
        return None
    return pb.Failure(failure_class=pb.FailureClass.Value(f"FAILURE_CLASS_{job.failure_class}"), message=job.failure_message)


def _spec_message(spec: Spec, *, brief: bool) -> pb.JobSpec:
    return pb.JobSpec(
        source=spec.source,
        recipes=[
            pb.Recipe(name=recipe.name, steps=[_step_message(step.technique, step.parameters) for step in recipe.steps])
            for recipe in spec.recipes
        ],
        evaluation=_data_message(spec.evaluation, brief=brief),
        calibration=_data_message(spec.calibration, brief=brief),
        training=_data_message(spec.training, brief=brief),
        metric=_METRIC_NUMBERS[spec.metric],
        budget=pb.Budget(**spec.budget.model_dump()),
        gates=pb.Gates(**spec.gates.model_dump()),
        objective=pb.Objective.Value(f"OBJECTIVE_{spec.objective}"),
        publish=pb.Publication(name=spec.publish.name, channels=spec.publish.channels),
        seed=spec.seed,
        teacher=spec.teacher,
        goal=goal_wire.goal_message(spec.goal) if spec.goal else None,
    )


def _step_message(technique: str, parameters: Mapping[str, Any]) -> pb.Step:
    return pb.Step(technique=technique, parameters=struct(parameters))


def report_message(report: Report) -> pb.Report:
    return pb.Report(
        original=_measurement(report.original),
        candidates=[_candidate(candidate) for candidate in report.candidates],
        chosen=report.chosen,
        environment=struct(report.environment),
        metric=_METRIC_NUMBERS[report.metric],
        data=struct(report.data),
    )


def _candidate(candidate: Candidate) -> pb.Candidate:
    return pb.Candidate(
        name=candidate.name,
        steps=[_step_message(step.technique, step.parameters) for step in candidate.steps],
        verdict=pb.Verdict.Value(f"VERDICT_{candidate.verdict}"),
        reason=candidate.reason,
        measurement=_measurement(candidate.measurement) if candidate.measurement else None,
        fidelity=interval_message(candidate.fidelity),
        min_fidelity=candidate.min_fidelity,
        speedup=interval_message(candidate.speedup),
        size_ratio=candidate.size_ratio,
        notes=struct(candidate.notes),
        optimization_seconds=candidate.optimization_seconds,
        qualities=[_quality(quality) for quality in candidate.qualities],
    )


def _quality(quality: Quality) -> pb.Quality:
    return pb.Quality(
        metric=_METRIC_NUMBERS[quality.metric],
        original=interval_message(quality.original),
        candidate=interval_message(quality.candidate),
        difference=interval_message(quality.difference),
        p_value=quality.p_value,
        test=quality.test,
        examples=quality.examples,
    )


def _measurement(measurement: Measurement) -> pb.Measurement:
    return pb.Measurement(
        size_bytes=measurement.size_bytes,
        load_seconds=measurement.load_seconds,
        workloads=[pb.WorkloadResult(**workload.model_dump()) for workload in measurement.workloads],
        memory_bytes=measurement.memory_bytes,
    )


def event_message(event: Event) -> pb.JobEvent:
    return pb.JobEvent(
        sequence=event.sequence,
        time=timestamp(event.time),
        state=pb.JobState.Value(f"JOB_STATE_{event.state}"),
        stage=event.stage,
        fraction=event.fraction,
        message=event.message,
        step=event.step,
        metrics=event.metrics,
    )


def technique_message(technique: Technique) -> pb.Technique:
    return pb.Technique(
        name=technique.name,
        summary=technique.summary,
        parameters_schema=struct(technique.parameters.model_json_schema()),
        needs_calibration=technique.needs_calibration,
        hardware_note=technique.hardware_note(),
        source_formats=list(technique.source_formats),
        target_format=technique.target_format or "",
        family=technique.family,
        tasks=sorted(technique.tasks),
        needs_training=technique.needs_training,
        unavailable=technique.probe(),
    )


def plan_message(estimate: Estimate) -> pb.PlanJobResponse:
    return pb.PlanJobResponse(
        recipes=[pb.PlannedRecipe(name=recipe.name, steps=[_planned_step(step) for step in recipe.steps]) for recipe in estimate.recipes],
        evaluation_seconds=estimate.evaluation_seconds,
        total_seconds=estimate.total_seconds,
        warnings=estimate.warnings,
    )


def _planned_step(step: PlannedStep) -> pb.PlannedStep:
    return pb.PlannedStep(
        technique=step.technique,
        parameters=struct(step.parameters),
        source_format=step.source_format,
        target_format=step.target_format,
        estimated_seconds=step.seconds,
        basis=step.basis,
    )
