"""What was predicted of an advised version beside what it does. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hone import rollout
from hone.inference.v1 import inference_pb2 as pb
from hone.optimization.v1 import advisor_pb2, jobs_pb2
from hone.rollout import Prediction

CLOSE = 0.15  # how far from 1 the ratio of a live figure to its prediction may be

Quantile = Literal["p50", "p99"]
_QUANTILES: tuple[Quantile, ...] = ("p50", "p99")


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure as predicted and as it is; None where it is not known. In "%" 1 is the whole."""

    name: str
    unit: Literal["ms", "x", "%", "/s"]
    predicted: float | None
    live: float | None

    @property
    def ratio(self) -> float | None:
        """Live over predicted; None where one is not known, or where nothing of it was predicted."""
        return self.live / self.predicted if self.live is not None and self.predicted else None

    @property
    def is_close(self) -> bool | None:
        """Whether the prediction was right within 15 %; None where there is no ratio."""
        if self.live is None or not self.predicted:
            return None
        return abs(self.live - self.predicted) <= CLOSE * self.predicted


def figures(wanted: Prediction, control: pb.ArmReport, advised: pb.ArmReport | None, shadow: pb.ShadowReport) -> Iterator[Figure]:
    """The speed-ups first: a latency by itself moves with the load.

    `advised` is None where the version answers copies alone.
    """
    original = wanted.original if is_the_source(wanted, control) else None
    if advised is not None:
        for name in _QUANTILES:
            predicted = _times(_predicted_ms(original, name), _predicted_ms(wanted.advised, name))
            yield Figure(f"{name}, times as fast as the control", "x", predicted, _times(_live_ms(control, name), _live_ms(advised, name)))
        for name in _QUANTILES:
            yield Figure(f"{name} of the advised version", "ms", _predicted_ms(wanted.advised, name), _live_ms(advised, name))
    for name in _QUANTILES:
        yield Figure(f"{name} of the control", "ms", _predicted_ms(original, name), _live_ms(control, name))
    if advised is not None:
        yield Figure("calls that failed", "%", rollout.unanswered_share(wanted.advised), _failed(advised))
    if shadow.compared:
        yield Figure("agreement", "%", wanted.fidelity.estimate if wanted.fidelity else None, shadow.agreement.estimate)


def notes(wanted: Prediction, control: pb.ArmReport) -> Iterator[str]:
    """What must be known to read the figures, a sentence each."""
    if wanted.advised is None:
        yield "nothing was measured through the service when the version was advised: there is no latency to compare with"
        return
    if not is_the_source(wanted, control):
        yield f"it was advised beside version {wanted.source_version}, and the control is version {control.version}: speed-ups differ"
    yield (
        f"predicted under {wanted.load}, as seen by who asked; live as the service took its own calls, without the way there. "
        "Another load than the predicted one moves every latency and is no error of the prediction: "
        "what the load does shows in the control's, so compare how many times as fast the version is; on a busy machine the arms also "
        "wait for each other"
    )


def live(found: pb.GetExperimentResponse) -> list[jobs_pb2.LiveFigures]:
    """The arms as the page of a job takes them; it finds by itself what was predicted of their versions."""
    return [
        jobs_pb2.LiveFigures(
            arm=arm.name,
            version=arm.version,
            calls=arm.calls,
            error_rate=arm.error_rate.estimate,
            p50_ms=1e3 * arm.p50_seconds,
            p99_ms=1e3 * arm.p99_seconds,
        )
        for arm in found.arms
    ]


def is_the_source(wanted: Prediction, control: pb.ArmReport) -> bool:
    """Whether the control is what the version was compared with when it was advised."""
    return control.version == wanted.source_version


def _predicted_ms(served: advisor_pb2.Served | None, name: Quantile) -> float | None:
    if served is None:
        return None
    if name == "p50":
        return served.p50_ms if served.HasField("p50_ms") else None
    return served.p99_ms if served.HasField("p99_ms") else None


def _live_ms(arm: pb.ArmReport, name: Quantile) -> float | None:
    return 1e3 * (arm.p50_seconds if name == "p50" else arm.p99_seconds) or None


def _times(control_ms: float | None, advised_ms: float | None) -> float | None:
    return control_ms / advised_ms if control_ms and advised_ms else None


def _failed(arm: pb.ArmReport) -> float | None:
    return arm.error_rate.estimate if arm.calls else None
