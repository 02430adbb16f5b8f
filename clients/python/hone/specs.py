"""Job specifications, splits of traffic and outcomes from plain Python values."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from hone.inference.v1 import inference_pb2
from hone.optimization.v1 import goals_pb2
from hone.optimization.v1 import jobs_pb2 as pb
from hone.repository.v1 import models_pb2

# A recipe is its steps: ("export_onnx", {"opset": 17}) or just "export_onnx".
StepLike: TypeAlias = str | tuple[str, Mapping[str, Any]]
# A dataset's reference, texts, texts with their labels, or the message with everything that it can say.
DataLike: TypeAlias = str | Sequence[str] | Sequence[tuple[str, str]] | pb.Data | None
ENDED = frozenset({pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_REJECTED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})


def job_spec(
    source: str,
    *,
    recipes: Mapping[str, Sequence[StepLike]] | None = None,
    evaluation: DataLike = (),
    calibration: DataLike = (),
    training: DataLike = (),
    metric: str = "",
    min_fidelity: float | None = None,
    max_loss: float | None = None,
    min_gain: float | None = None,
    min_examples: int | None = None,
    objective: str = "throughput",
    publish_as: str = "",
    channels: Sequence[str] = (),
    teacher: str = "",
    goal: goals_pb2.Goal | None = None,
    budget_seconds: float = 0,
    cores: int = 0,
    memory_bytes: int = 0,
    seed: int = 0,
) -> pb.JobSpec:
    """A job as the contract describes it; what is left out takes the server's default.

    Raises ValueError for an unknown objective or metric.
    """
    gates = pb.Gates(min_fidelity=min_fidelity, min_gain=min_gain, min_examples=min_examples, max_loss=max_loss)
    return pb.JobSpec(
        source=source,
        recipes=[_recipe(name, steps) for name, steps in (recipes or {}).items()],
        evaluation=data(evaluation),
        calibration=data(calibration),
        training=data(training),
        metric=pb.Metric.Value(f"METRIC_{metric.upper() or 'UNSPECIFIED'}"),
        gates=gates,
        objective=pb.Objective.Value(f"OBJECTIVE_{objective.upper()}"),
        publish=pb.Publication(name=publish_as, channels=channels),
        budget=pb.Budget(seconds=budget_seconds, cores=cores, memory_bytes=memory_bytes),
        seed=seed,
        teacher=teacher,
        goal=goal,
    )


def goal(
    scenario: str = "throughput",
    *,
    max_loss: float | None = None,
    min_speedup: float | None = None,
    min_served_speedup: float | None = None,
    max_size_bytes: int | None = None,
    max_memory_bytes: int | None = None,
    max_p99_ms: float | None = None,
    at_rows_per_second: float | None = None,
    traffic: goals_pb2.Traffic | None = None,
    economics: goals_pb2.Economics | None = None,
    precisions_only: bool = False,
) -> goals_pb2.Goal:
    """What `job_spec(goal=…)` is to reach instead of naming recipes: `latency`, `throughput` or `resource`, and what wins over its presets.

    Raises ValueError for an unknown scenario.
    """
    targets = goals_pb2.Targets(
        max_loss=max_loss,
        min_speedup=min_speedup,
        min_served_speedup=min_served_speedup,
        max_size_bytes=max_size_bytes,
        max_memory_bytes=max_memory_bytes,
        max_p99_ms=max_p99_ms,
        at_rows_per_second=at_rows_per_second,
    )
    return goals_pb2.Goal(
        scenario=goals_pb2.Scenario.Value(f"SCENARIO_{scenario.upper()}"),
        targets=targets,
        traffic=traffic,
        economics=economics,
        precisions_only=precisions_only,
    )


def data(found: DataLike) -> pb.Data | None:
    """None for no data at all."""
    if found is None or isinstance(found, pb.Data):
        return found
    if isinstance(found, str):
        return pb.Data(dataset=found)
    texts = [entry if isinstance(entry, str) else entry[0] for entry in found]
    labels = [entry[1] for entry in found if not isinstance(entry, str)]
    return pb.Data(texts=texts, labels=labels) if texts else None


def traffic(
    arms: Mapping[str, tuple[int, float]],
    *,
    shadow: tuple[int, float] | None = None,
    max_error_rate: float | None = None,
    max_p99_ratio: float | None = None,
    min_agreement: float | None = None,
    min_calls: int = 0,
    experiment: str = "",
    revision: int = 0,
) -> models_pb2.Traffic:
    """How a channel's calls are split, as the contract describes it.

    Args:
        arms: name to version and weight; the first is the control and has the version that the channel points at.
        shadow: version and share of the control's calls that are copied for it.
        revision: of the split that this one is to replace; 0 replaces whatever there is.
    """
    return models_pb2.Traffic(
        experiment=experiment,
        arms=[models_pb2.Arm(name=name, version=version, weight=weight) for name, (version, weight) in arms.items()],
        shadow=models_pb2.Shadow(version=shadow[0], share=shadow[1]) if shadow is not None else None,
        guardrails=models_pb2.Guardrails(
            max_error_rate=max_error_rate, max_p99_ratio=max_p99_ratio, min_agreement=min_agreement, min_calls=min_calls
        ),
        revision=revision,
    )


def outcome(
    served: inference_pb2.Served, name: str, observed: bool | float, *, count: int, idempotency_key: str
) -> inference_pb2.RecordOutcomeRequest:
    """What came of an answer: True and False are a success and none, any other number is a value."""
    made = inference_pb2.RecordOutcomeRequest(
        model=served.model,
        channel=served.channel,
        variant=served.variant,
        revision=served.revision,
        name=name,
        count=count,
        idempotency_key=idempotency_key,
    )
    if isinstance(observed, bool):
        made.success = observed
    else:
        made.value = observed
    return made


def _recipe(name: str, steps: Sequence[StepLike]) -> pb.Recipe:
    recipe = pb.Recipe(name=name)
    for step in steps:
        technique, parameters = (step, {}) if isinstance(step, str) else step
        recipe.steps.add(technique=technique).parameters.update(dict(parameters))
    return recipe
