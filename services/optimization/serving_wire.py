"""Between the advisor's messages of serving and our own values."""

from hone.optimization.v1 import advisor_pb2

from services.optimization.advisor.serving.served import ServedAdvice, ServedCapacity, ServedFigures, TriedSettings
from services.optimization.conversion import struct
from services.optimization.interval_wire import interval_message


def serving_message(served: ServedAdvice) -> advisor_pb2.Serving:
    advice = served.advice
    return advisor_pb2.Serving(
        original=_served(served.original),
        chosen_with_defaults=_served(served.candidate_default),
        chosen=_served(served.candidate),
        speedup=interval_message(served.speedup),
        settings_gain=interval_message(served.settings_gain),
        settings=struct(advice.settings),
        settings_tried=[*(_tried(each, kept=True) for each in advice.kept), *(_tried(each, kept=False) for each in advice.not_kept)],
        settings_left=advice.left,
        settings_failed=advice.failed,
        original_at_rate=_served(served.original_at_rate) if served.original_at_rate else None,
        chosen_at_rate=_served(served.candidate_at_rate) if served.candidate_at_rate else None,
        original_capacity=_capacity(served.original_capacity),
        chosen_capacity=_capacity(served.candidate_capacity),
    )


def _served(figures: ServedFigures) -> advisor_pb2.Served:
    told = figures.model_dump(exclude={"rows_per_second"}, exclude_none=True)
    return advisor_pb2.Served(rows_per_second=interval_message(figures.rows_per_second), **told)


def _capacity(found: ServedCapacity | None) -> advisor_pb2.ServedCapacity | None:
    if found is None:
        return None
    return advisor_pb2.ServedCapacity(max_p99_ms=found.max_p99_ms, callers=found.callers, figures=_served(found.figures))


def _tried(trial: TriedSettings, *, kept: bool) -> advisor_pb2.SettingTrial:
    return advisor_pb2.SettingTrial(knob=trial.knob, settings=struct(trial.settings), gain=trial.gain, noise=trial.noise, kept=kept)
