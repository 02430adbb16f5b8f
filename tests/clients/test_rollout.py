"""Rolling a recommendation out: which split tries it, what its figures say, and the decision, without a service."""

import re
from typing import Any

import pytest
from hone import rollout
from hone.inference.v1 import inference_pb2 as pb
from hone.optimization.v1 import advisor_pb2, goals_pb2, jobs_pb2
from hone.repository.v1 import models_pb2
from hone.rollout import Prediction
from hone.rollout_figures import Figure, live
from hone.rollout_status import Decision, Status, status
from hypothesis import given
from hypothesis import strategies as st

CONTROL = models_pb2.ModelVersion(name="m", version=1, task=models_pb2.TASK_CLASSIFICATION)
NO_SPLIT = models_pb2.Traffic()
REVISION = 4


def served(p50: float, p99: float, requests: int = 1000, unanswered: int = 0) -> advisor_pb2.Served:
    return advisor_pb2.Served(p50_ms=p50, p99_ms=p99, requests=requests, unanswered=unanswered)


def interval(estimate: float, low: float, high: float) -> jobs_pb2.Interval:
    return jobs_pb2.Interval(estimate=estimate, low=low, high=high)


def job(published: str = "m@2", source: str = "m@1", **changes: Any) -> jobs_pb2.Job:
    chosen = jobs_pb2.Candidate(name="best", fidelity=interval(0.97, 0.96, 0.98))
    report = jobs_pb2.Report(candidates=[jobs_pb2.Candidate(name="other"), chosen], chosen="best")
    given = {"id": "j", "spec": jobs_pb2.JobSpec(source=source), "state": jobs_pb2.JOB_STATE_SUCCEEDED, "report": report}
    return jobs_pb2.Job(**{**given, "published": published, **changes})


def recommendation(**changes: Any) -> advisor_pb2.Recommendation:
    serving = advisor_pb2.Serving(original=served(40, 100), chosen=served(10, 25), chosen_with_defaults=served(20, 50))
    return advisor_pb2.Recommendation(**{"serving": serving, **changes})


def predicted(**changes: Any) -> Prediction:
    told = {"original": served(40, 100), "advised": served(10, 25), "load": "16 callers", "fidelity": interval(0.97, 0.96, 0.98)}
    return Prediction(**{"job_id": "j", "model": "m", "version": 2, "source_version": 1, **told, **changes})


def split(wanted: Prediction | None = None, running: models_pb2.Traffic = NO_SPLIT, **options: Any) -> models_pb2.Traffic:
    return rollout.split(wanted or predicted(), CONTROL, "stable", running, **options)


# What was predicted


def test_a_prediction_is_of_the_published_version_with_its_own_settings() -> None:
    found = rollout.prediction(job(), recommendation())
    assert (found.model, found.version, found.source_version) == ("m", 2, 1)
    assert found.original == served(40, 100)
    assert found.advised == served(10, 25)
    assert found.fidelity == interval(0.97, 0.96, 0.98)
    assert "16 callers" in found.load


def test_the_traffics_own_rate_is_nearest_to_what_users_do() -> None:
    serving = recommendation().serving
    serving.original_at_rate.CopyFrom(served(8, 20))
    serving.chosen_at_rate.CopyFrom(served(2, 5))
    goal = goals_pb2.Goal(traffic=goals_pb2.Traffic(rate=30))
    found = rollout.prediction(job(), recommendation(serving=serving, goal=goal))
    assert (found.original, found.advised) == (served(8, 20), served(2, 5))
    assert "30 requests a second" in found.load
    goal.traffic.rate = 0
    assert "recorded times" in rollout.prediction(job(), recommendation(serving=serving, goal=goal)).load
    goal.targets.at_rows_per_second = 50
    assert "50 rows a second" in rollout.prediction(job(), recommendation(serving=serving, goal=goal)).load


def test_what_was_not_served_has_no_prediction() -> None:
    found = rollout.prediction(job(report=jobs_pb2.Report()), advisor_pb2.Recommendation())
    assert (found.original, found.advised, found.load, found.fidelity) == (None, None, "", None)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (job(published="", state=jobs_pb2.JOB_STATE_REJECTED), "job j is rejected and has published nothing to roll out; too slow"),
        (job(published="advised@1"), "advise again without `publish_as`, so that m gets the version"),
    ],
)
def test_what_cannot_be_rolled_out_is_told(made: jobs_pb2.Job, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        rollout.prediction(made, recommendation(missed=["too slow"]))


# The split


def test_a_split_gives_a_tenth_to_the_advised_version_and_guards_it() -> None:
    made = split()
    assert [(arm.name, arm.version, arm.weight) for arm in made.arms] == [("stable", 1, 0.9), ("advised", 2, 0.1)]
    assert not made.HasField("shadow")
    assert made.guardrails == models_pb2.Guardrails(max_error_rate=0.01, max_p99_ratio=1.2)


def test_a_shadow_by_itself_answers_nobody_and_has_no_guardrail_of_agreement() -> None:
    made = split(shadow=0.5)
    assert [arm.name for arm in made.arms] == ["stable"]
    assert (made.shadow.version, made.shadow.share) == (2, 0.5)
    assert not made.guardrails.HasField("min_agreement")


def test_a_shadow_beside_a_share_guards_the_agreement_that_was_measured() -> None:
    assert split(share=0.2, shadow=0.5).guardrails.min_agreement == pytest.approx(0.94)
    assert not split(predicted(fidelity=None), share=0.2, shadow=0.5).guardrails.HasField("min_agreement")


def test_tensors_are_compared_otherwise_than_jobs_measure_fidelity() -> None:
    assert rollout.least_agreement(predicted(), models_pb2.TASK_TENSOR) is None


def test_guardrails_follow_what_was_predicted() -> None:
    slower = split(predicted(advised=served(50, 150, requests=980, unanswered=20)))
    assert slower.guardrails.max_p99_ratio == pytest.approx(1.8)  # it was chosen for its size: half as slow again, and a margin
    assert slower.guardrails.max_error_rate == pytest.approx(0.02)
    lost = split(predicted(advised=advisor_pb2.Served(unanswered=10)))
    assert lost.guardrails.max_error_rate < 1  # which the server asks for
    unknown = split(predicted(original=None, advised=None))
    assert unknown.guardrails == split().guardrails


def test_what_is_asked_for_wins() -> None:
    asked = models_pb2.Guardrails(max_p99_ratio=3, min_calls=20)
    assert split(guardrails=asked).guardrails == models_pb2.Guardrails(max_error_rate=0.01, max_p99_ratio=3, min_calls=20)


def test_a_channel_may_have_the_arms_name() -> None:
    made = rollout.split(predicted(), CONTROL, "advised", NO_SPLIT)
    assert len({arm.name for arm in made.arms}) == 2


def test_a_larger_share_keeps_its_users_and_replaces_what_was_read() -> None:
    first = split()
    first.revision = 7
    second = split(running=first, share=0.5)
    assert second.revision == 7
    assert second.experiment == first.experiment
    assert len(second.experiment) <= 64


@given(share=st.floats(0.001, 0.999), shadow=st.sampled_from([0.0, 0.5]))
def test_the_weights_are_the_shares(share: float, shadow: float) -> None:
    weights = [arm.weight for arm in split(share=share, shadow=shadow).arms]
    assert weights[1] / sum(weights) == pytest.approx(share)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 1.0}, "share: must be 0 or more and below 1"),
        ({"share": float("nan")}, "share: must be"),
        ({"share": -0.1}, "share: must be"),
        ({"shadow": 1.5}, "shadow: must be"),
        ({"share": 0.0}, "must be above 0 where nothing is copied"),
        ({"wanted": predicted(version=1)}, "m:stable is version 1 already"),
        ({"running": models_pb2.Traffic(arms=[models_pb2.Arm(name="a", version=1), models_pb2.Arm(name="b", version=9)])}, "b = version 9"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        split(**options)


def test_another_split_is_replaced_where_that_is_asked_for() -> None:
    other = models_pb2.Traffic(arms=[models_pb2.Arm(name="a", version=1), models_pb2.Arm(name="b", version=9)], revision=3)
    assert split(running=other, replace=True).revision == 3


# How it stands


def estimate(estimate: float, low: float = 0.0, high: float = 1.0) -> pb.Estimate:
    return pb.Estimate(estimate=estimate, low=low, high=high)


def control(**changes: Any) -> pb.ArmReport:
    told = {"name": "stable", "version": 1, "share": 0.9, "calls": 9000, "error_rate": estimate(0.001, 0, 0.003)}
    return pb.ArmReport(**{**told, "p50_seconds": 0.02, "p99_seconds": 0.08, **changes})


def advised(**changes: Any) -> pb.ArmReport:
    told = {"name": "advised", "version": 2, "share": 0.1, "calls": 1000, "error_rate": estimate(0.0, 0, 0.006)}
    return pb.ArmReport(**{**told, "p50_seconds": 0.005, "p99_seconds": 0.02, **changes})


def shadow(**changes: Any) -> pb.ShadowReport:
    told = {"version": 2, "share": 0.5, "compared": 1000, "rows": 1000, "agreement": estimate(0.968, 0.96, 0.975)}
    return pb.ShadowReport(**{**told, **changes})


def running(*, has_arm: bool = True, has_shadow: bool = False) -> models_pb2.Traffic:
    made = split(share=0.1 if has_arm else 0.0, shadow=0.5 if has_shadow else 0.0)
    made.revision = REVISION
    return made


def at(
    *arms: pb.ArmReport,
    traffic: models_pb2.Traffic | None = None,
    copies: pb.ShadowReport | None = None,
    wanted: Prediction | None = None,
    version: models_pb2.ModelVersion = CONTROL,
    revision: int = REVISION,
    pending_reason: str = "",
    **options: Any,
) -> Status:
    found = pb.GetExperimentResponse(
        model="m", channel="stable", revision=revision, arms=arms, shadow=copies, pending_reason=pending_reason
    )
    return status(wanted or predicted(), version, running() if traffic is None else traffic, found, **options)


def test_no_worse_with_enough_calls_is_promoted() -> None:
    found = at(control(), advised())
    assert found.decision is Decision.PROMOTE
    assert "0.25 times the control's" in found.reason


def test_too_few_calls_tell_how_many_more() -> None:
    found = at(control(), advised(calls=400))
    assert found.decision is Decision.WAIT
    assert "after about 6000 more calls" in found.reason
    assert at(control(), advised(calls=400), enough_calls=400).decision is Decision.PROMOTE


def test_the_control_needs_calls_too() -> None:
    assert at(control(calls=10), advised()).decision is Decision.WAIT


def test_what_a_guardrail_took_out_is_rolled_back() -> None:
    found = at(control(), advised(taken_out="p99 is above", calls=3, share=0))
    assert found.decision is Decision.ROLL_BACK
    assert found.reason == "a guardrail took it out: p99 is above"


@pytest.mark.parametrize(
    ("rate", "decision"),
    [
        (estimate(0.05, 0.01, 0.09), Decision.ROLL_BACK),  # surely more than the control's 0.3 % at most
        (estimate(0.005, 0.002, 0.02), Decision.WAIT),
        (estimate(0.005, 0.002, 0.0099), Decision.PROMOTE),  # surely within the 1 % that are allowed
        (estimate(0.001, 0.0, 0.02), Decision.PROMOTE),  # no more than the control's
    ],
)
def test_errors_decide(rate: pb.Estimate, decision: Decision) -> None:
    assert at(control(), advised(error_rate=rate)).decision is decision


def test_surely_more_errors_need_no_more_calls() -> None:
    assert at(control(), advised(calls=50, error_rate=estimate(0.5, 0.3, 0.7))).decision is Decision.ROLL_BACK


def test_a_slow_version_waits_for_the_guardrail() -> None:
    found = at(control(), advised(p99_seconds=0.1))
    assert found.decision is Decision.WAIT
    assert "1.25 times the control's" in found.reason
    assert at(control(), advised(p99_seconds=0.09)).decision is Decision.PROMOTE


def test_without_answers_there_is_no_p99() -> None:
    assert at(control(p50_seconds=0, p99_seconds=0), advised()).decision is Decision.WAIT
    assert at(control(), advised(p50_seconds=0, p99_seconds=0)).decision is Decision.WAIT


def outcome(low: float, high: float) -> pb.OutcomeReport:
    compared = pb.Comparison(difference=estimate((low + high) / 2, low, high), verdict="so and so")
    return pb.OutcomeReport(name="click", count=500, comparison=compared)


@pytest.mark.parametrize(
    ("low", "high", "lower_is_better", "decision"),
    [
        (-0.2, -0.1, (), Decision.ROLL_BACK),
        (-0.1, 0.1, (), Decision.PROMOTE),
        (0.1, 0.2, (), Decision.PROMOTE),
        (0.1, 0.2, ("click",), Decision.ROLL_BACK),
        (-0.2, -0.1, ("click",), Decision.PROMOTE),
        (0.1, 0.2, ("other",), Decision.PROMOTE),
    ],
)
def test_outcomes_decide(low: float, high: float, lower_is_better: tuple[str, ...], decision: Decision) -> None:
    assert at(control(), advised(outcomes=[outcome(low, high)]), lower_is_better=lower_is_better).decision is decision


def test_too_few_outcomes_are_waited_for() -> None:
    found = at(control(), advised(outcomes=[pb.OutcomeReport(name="click", count=3)]))
    assert found.decision is Decision.WAIT
    assert "click" in found.reason


def test_the_worst_finding_decides() -> None:
    assert at(control(), advised(calls=1, outcomes=[outcome(-0.2, -0.1)])).decision is Decision.ROLL_BACK


# Copies


def test_copies_that_agree_ask_for_a_split() -> None:
    found = at(control(share=1), traffic=running(has_arm=False, has_shadow=True), copies=shadow())
    assert found.decision is Decision.SPLIT
    assert "0.9680" in found.reason


@pytest.mark.parametrize(
    ("changes", "decision", "words"),
    [
        ({"compared": 900}, Decision.WAIT, "after about 200 more calls"),
        ({"compared": 985, "failed": 15}, Decision.ROLL_BACK, "1.50% of 1000 calls copied to it failed"),
        ({"agreement": estimate(0.92, 0.90, 0.939)}, Decision.ROLL_BACK, "surely less than 0.9400"),
        ({"agreement": estimate(0.935, 0.92, 0.95)}, Decision.WAIT, "not surely so yet"),
    ],
)
def test_copies_decide(changes: dict[str, Any], decision: Decision, words: str) -> None:
    found = at(control(share=1), traffic=running(has_arm=False, has_shadow=True), copies=shadow(**changes))
    assert found.decision is decision
    assert words in found.reason


def test_an_arm_whose_copies_disagree_is_not_promoted() -> None:
    both = running(has_shadow=True)
    assert at(control(), advised(), traffic=both, copies=shadow()).decision is Decision.PROMOTE
    assert at(control(), advised(), traffic=both, copies=shadow(agreement=estimate(0.93, 0.9, 0.96))).decision is Decision.WAIT


def test_without_a_prediction_agreement_is_told_and_not_judged() -> None:
    low = shadow(agreement=estimate(0.5, 0.4, 0.6))
    found = at(control(share=1), traffic=running(has_arm=False, has_shadow=True), copies=low, wanted=predicted(fidelity=None))
    assert found.decision is Decision.SPLIT


# Before and after


def test_a_split_that_is_not_routed_by_yet_is_waited_for() -> None:
    for found in (at(pending_reason="version 2 is loading"), at(control(), advised(), revision=3, pending_reason="version 2 is loading")):
        assert found.decision is Decision.WAIT
        assert "version 2 is loading" in found.reason
        assert not found.figures


def test_a_promoted_version_is_done() -> None:
    found = at(traffic=NO_SPLIT, version=models_pb2.ModelVersion(name="m", version=2))
    assert found.decision is Decision.DONE
    assert found.reason == "m:stable is version 2 now"


def test_a_rollout_that_has_not_begun_has_no_status() -> None:
    with pytest.raises(ValueError, match="start its rollout first"):
        at(traffic=NO_SPLIT)


def test_which_arm_is_promoted_and_what_is_taken_back() -> None:
    assert rollout.promoted_arm(predicted(), "stable", running()) == "advised"
    assert rollout.promoted_arm(predicted(), "stable", running(has_arm=False, has_shadow=True)) == ""
    assert not rollout.is_promoted(predicted(), CONTROL, "stable", running())
    assert rollout.is_promoted(predicted(), models_pb2.ModelVersion(version=2), "stable", NO_SPLIT)
    for refused in (rollout.promoted_arm, lambda *given: rollout.is_promoted(given[0], CONTROL, *given[1:])):
        with pytest.raises(ValueError, match="start its rollout first"):
            refused(predicted(), "stable", NO_SPLIT)
    others = running()
    others.arms.add(name="other", version=9, weight=1)
    with pytest.raises(ValueError, match="other versions too"):
        rollout.is_promoted(predicted(), CONTROL, "stable", others)


# Figures


def figures(found: Status) -> dict[str, Figure]:
    return {figure.name: figure for figure in found.figures}


def test_figures_stand_beside_their_predictions() -> None:
    found = figures(at(control(), advised()))
    speedup = found["p50, times as fast as the control"]
    assert (speedup.predicted, speedup.live, speedup.ratio, speedup.is_close) == (4.0, 4.0, 1.0, True)  # under half of the load
    latency = found["p50 of the advised version"]
    assert (latency.predicted, latency.live, latency.ratio, latency.is_close) == (10.0, 5.0, 0.5, False)
    assert found["p99 of the control"].live == pytest.approx(80)
    failed = found["calls that failed"]
    assert (failed.predicted, failed.live, failed.ratio, failed.is_close) == (0.0, 0.0, None, None)


def test_another_control_than_the_source_has_no_prediction() -> None:
    moved = control(version=3)
    found = at(moved, advised())
    assert figures(found)["p50 of the control"].predicted is None
    assert figures(found)["p50, times as fast as the control"].predicted is None
    assert any("the control is version 3" in note for note in found.notes)


def test_what_was_not_served_is_said_so() -> None:
    found = at(control(), advised(), wanted=predicted(original=None, advised=None))
    assert all(figure.predicted is None for figure in found.figures)
    assert "nothing was measured through the service" in found.notes[0]


def test_the_load_of_the_prediction_is_told() -> None:
    assert "16 callers" in at(control(), advised()).notes[-1]


def test_copies_alone_have_an_agreement_and_no_latency() -> None:
    found = figures(at(control(share=1), traffic=running(has_arm=False, has_shadow=True), copies=shadow()))
    assert set(found) == {"p50 of the control", "p99 of the control", "agreement"}
    assert found["agreement"].ratio == pytest.approx(0.968 / 0.97)


@pytest.mark.parametrize(("told", "is_close"), [(100, True), (115, True), (115.1, False), (85, True), (84.9, False)])
def test_close_is_within_15_percent_of_the_prediction(told: float, is_close: bool) -> None:
    assert Figure("f", "ms", 100, told).is_close is is_close


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_closeness_knows_no_unit(predicted: float, told: float) -> None:
    assert Figure("f", "ms", predicted, told).is_close is Figure("f", "ms", 1024 * predicted, 1024 * told).is_close


def test_the_page_is_told_every_arm() -> None:
    found = at(control(), advised()).found
    assert found is not None
    told = live(found)
    assert [(arm.arm, arm.version, arm.calls) for arm in told] == [("stable", 1, 9000), ("advised", 2, 1000)]
    assert told[1].p99_ms == pytest.approx(20)
