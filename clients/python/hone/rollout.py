"""A recommendation on its way to its users: what was predicted of it, and the split of calls that tries it.

Pure: messages in, messages out. `client.rollouts` makes the calls, `hone.rollout_status` judges what came of them.
"""

from dataclasses import dataclass

from hone import specs
from hone.optimization.v1 import advisor_pb2, goals_pb2, jobs_pb2
from hone.repository.v1 import models_pb2

CHANNEL = "stable"
ARM = "advised"
SHARE = 0.1  # of the channel's calls
MAX_ERROR_RATE = 0.01
P99_MARGIN = 1.2  # that the advised version may be slower by than the control, or than it was predicted to be beside it
DEFAULT_CALLERS = 16  # of a goal's traffic that tells none
AGREEMENT_MARGIN = 0.02  # users ask other things than the evaluation did
_MOST_ERROR_RATE = 0.99
# Where agreement of a shadow's answers is what a job measures as fidelity: the mean cosine, or the share of equal labels.
_COMPARED_ALIKE = frozenset(
    {
        models_pb2.TASK_EMBEDDING,
        models_pb2.TASK_CLASSIFICATION,
        models_pb2.TASK_TOKEN_CLASSIFICATION,
        models_pb2.TASK_IMAGE_CLASSIFICATION,
        models_pb2.TASK_CAUSAL_LM,
    }
)


@dataclass(frozen=True)
class Prediction:
    """What a job published, and what it measured of that beside its source.

    `original` and `advised` were served the same traffic in turns: at the rate that was told, else as fast as they answered. Both are
    None where serving could not be tried. `fidelity` is None where it was not measured.
    """

    job_id: str
    model: str
    version: int
    source_version: int
    original: advisor_pb2.Served | None = None
    advised: advisor_pb2.Served | None = None
    load: str = ""  # that they were served under, in words
    fidelity: jobs_pb2.Interval | None = None


def prediction(job: jobs_pb2.Job, found: advisor_pb2.Recommendation) -> Prediction:
    """Raises ValueError where the job published nothing, or under another name than its source's."""
    if not job.published:
        state = jobs_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
        raise ValueError(f"job {job.id} is {state} and has published nothing to roll out{''.join(f'; {line}' for line in found.missed)}")
    (model, version), (source, source_version) = _named(job.published), _named(job.spec.source)
    if model != source:
        raise ValueError(
            f"job {job.id} published {job.published}, a version of another model than its source {job.spec.source}, and calls are split "
            f"among the versions of one model: advise again without `publish_as`, so that {source} gets the version"
        )
    original, advised, load = _served(found)
    candidate = next((each for each in job.report.candidates if each.name == job.report.chosen), jobs_pb2.Candidate())
    fidelity = candidate.fidelity if candidate.HasField("fidelity") else None
    return Prediction(job.id, model, version, source_version, original, advised, load, fidelity)


def _named(reference: str) -> tuple[str, int]:
    name, _, version = reference.partition("@")
    return name, int(version)


def _served(found: advisor_pb2.Recommendation) -> tuple[advisor_pb2.Served | None, advisor_pb2.Served | None, str]:
    """Under the traffic's own rate where it had one: that is nearest to what users do."""
    serving, traffic = found.serving, found.goal.traffic
    if serving.HasField("original_at_rate") and serving.HasField("chosen_at_rate"):
        return serving.original_at_rate, serving.chosen_at_rate, _rate(found.goal)
    if serving.HasField("original") and serving.HasField("chosen"):
        callers = traffic.callers or DEFAULT_CALLERS
        return serving.original, serving.chosen, f"{callers} callers that each asked again as soon as they were answered"
    return None, None, ""


def _rate(goal: goals_pb2.Goal) -> str:
    if goal.targets.HasField("at_rows_per_second"):
        return f"{goal.targets.at_rows_per_second:g} rows a second"
    return f"{goal.traffic.rate:g} requests a second" if goal.traffic.rate else "requests at their recorded times"


def split(
    wanted: Prediction,
    control: models_pb2.ModelVersion,
    channel: str,
    running: models_pb2.Traffic,
    *,
    share: float | None = None,
    shadow: float = 0.0,
    guardrails: models_pb2.Guardrails | None = None,
    replace: bool = False,
) -> models_pb2.Traffic:
    """The split that tries the advised version against the channel's.

    Args:
        control: the version that the channel points at.
        running: the channel's split so far; one that tries something else is only replaced where `replace` says so.
        share: of the channel's calls that the advised version answers. None: 0.1, or 0 where there is a shadow.
        shadow: of the control's calls, how many are copied to the advised version for comparison alone.
        guardrails: those that are set win over what follows from the prediction.

    Raises ValueError for what cannot be rolled out.
    """
    share = (0.0 if shadow else SHARE) if share is None else share
    _check_shares(share, shadow)
    where = f"{wanted.model}:{channel}"
    if control.version == wanted.version:
        raise ValueError(f"{where} is version {wanted.version} already: there is nothing left to roll out")
    if running.arms and _tried(running) != {wanted.version} and not replace:
        told = ", ".join(f"{arm.name} = version {arm.version}" for arm in running.arms)
        raise ValueError(f"the calls of {where} are split already ({told}): end that first, or replace it")
    arms = {channel: (control.version, 1 - share)}
    if share:
        arms[ARM if channel != ARM else "candidate"] = (wanted.version, share)
    made = specs.traffic(
        arms,
        shadow=(wanted.version, shadow) if shadow else None,
        experiment=f"rollout-{wanted.job_id}"[:64],  # a larger share later leaves its users to the advised version
        revision=running.revision,
    )
    made.guardrails.MergeFrom(_guardrails(wanted, control.task, is_compared=bool(share and shadow)))
    made.guardrails.MergeFrom(guardrails or models_pb2.Guardrails())
    return made


def _check_shares(share: float, shadow: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"share: must be 0 or more and below 1, not {share:g}; promotion gives the advised version all calls")
    if not 0 <= shadow <= 1:
        raise ValueError(f"shadow: must be 0 to 1, not {shadow:g}")
    if not share and not shadow:
        raise ValueError("share: must be above 0 where nothing is copied to a shadow")


def _guardrails(wanted: Prediction, task: "models_pb2.Task.ValueType", *, is_compared: bool) -> models_pb2.Guardrails:
    """Agreement guards an arm, so that a shadow alone has no such guardrail."""
    return models_pb2.Guardrails(
        max_error_rate=min(max(MAX_ERROR_RATE, unanswered_share(wanted.advised) or 0.0), _MOST_ERROR_RATE),
        max_p99_ratio=P99_MARGIN * max(1.0, _ratio(wanted.advised, wanted.original)),
        min_agreement=least_agreement(wanted, task) if is_compared else None,
    )


def _ratio(advised: advisor_pb2.Served | None, original: advisor_pb2.Served | None) -> float:
    """Of their 99th percentiles; 0 where one of them is not known."""
    if advised is None or original is None or not original.p99_ms:
        return 0.0
    return advised.p99_ms / original.p99_ms


def unanswered_share(served: advisor_pb2.Served | None) -> float | None:
    """Of the requests of a replay; None where there was none."""
    asked = served.requests + served.unanswered if served is not None else 0
    return served.unanswered / asked if served is not None and asked else None


def least_agreement(wanted: Prediction, task: "models_pb2.Task.ValueType") -> float | None:
    """Of a shadow's answers with the control's, a margin below the fidelity that was measured; None where that says nothing of it."""
    if wanted.fidelity is None or task not in _COMPARED_ALIKE:
        return None
    return max(wanted.fidelity.low - AGREEMENT_MARGIN, AGREEMENT_MARGIN)


def promoted_arm(wanted: Prediction, channel: str, running: models_pb2.Traffic) -> str:
    """Name of the advised version's arm; empty where it answers copies alone. Raises ValueError where the split does not try it."""
    check_tried(wanted, channel, running)
    return next((arm.name for arm in running.arms[1:] if arm.version == wanted.version), "")


def is_promoted(wanted: Prediction, control: models_pb2.ModelVersion, channel: str, running: models_pb2.Traffic) -> bool:
    """Whether what is to be taken back is the promotion, not the split.

    Raises ValueError where there is neither, and where the split tries other versions too, whose counts would end with it.
    """
    if not running.arms and control.version == wanted.version:
        return True
    check_tried(wanted, channel, running)
    if _tried(running) != {wanted.version}:
        raise ValueError(
            f"the split of {wanted.model}:{channel} tries other versions too: end it with `hone traffic clear` if they may end"
        )
    return False


def check_tried(wanted: Prediction, channel: str, running: models_pb2.Traffic) -> None:
    """Raises ValueError where the version answers no calls of the split, and no copies either."""
    if wanted.version not in _tried(running):
        raise ValueError(f"no calls of {wanted.model}:{channel} go to version {wanted.version}: start its rollout first")


def _tried(traffic: models_pb2.Traffic) -> set[int]:
    """Versions of a split beside its control."""
    return {arm.version for arm in traffic.arms[1:]} | ({traffic.shadow.version} if traffic.HasField("shadow") else set())


def no_channel(wanted: Prediction, channel: str) -> str:
    """What to tell of a channel that is not there."""
    source = f"{wanted.model} {wanted.source_version} --channel {channel}"
    return f"{wanted.model} has no channel {channel!r}, whose version would be the control: `hone promote {source}` points it at the source"
