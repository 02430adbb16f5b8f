"""Job specifications from plain Python values."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from hone.optimization.v1 import jobs_pb2 as pb

# A recipe is its steps: ("export_onnx", {"opset": 17}) or just "export_onnx".
StepLike: TypeAlias = str | tuple[str, Mapping[str, Any]]
ENDED = frozenset({pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_REJECTED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})


def job_spec(
    source: str,
    *,
    recipes: Mapping[str, Sequence[StepLike]] | None = None,
    evaluation_texts: Sequence[str] = (),
    calibration_texts: Sequence[str] = (),
    min_fidelity: float | None = None,
    min_gain: float | None = None,
    min_examples: int | None = None,
    objective: str = "throughput",
    publish_as: str = "",
    channels: Sequence[str] = (),
    seed: int = 0,
) -> pb.JobSpec:
    """A job as the contract describes it; what is left out takes the server's default. Raises ValueError for an unknown objective."""
    gates = pb.Gates(min_fidelity=min_fidelity, min_gain=min_gain, min_examples=min_examples)
    return pb.JobSpec(
        source=source,
        recipes=[_recipe(name, steps) for name, steps in (recipes or {}).items()],
        evaluation_texts=evaluation_texts,
        calibration_texts=calibration_texts,
        gates=gates,
        objective=pb.Objective.Value(f"OBJECTIVE_{objective.upper()}"),
        publish=pb.Publication(name=publish_as, channels=channels),
        seed=seed,
    )


def _recipe(name: str, steps: Sequence[StepLike]) -> pb.Recipe:
    recipe = pb.Recipe(name=name)
    for step in steps:
        technique, parameters = (step, {}) if isinstance(step, str) else step
        recipe.steps.add(technique=technique).parameters.update(dict(parameters))
    return recipe
