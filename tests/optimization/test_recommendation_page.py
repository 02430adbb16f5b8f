"""The page of a job with a goal: facts in, what a reader sees out."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from hone.aio import Client as AsyncClient
from hone.cli import app
from hone.client import Client
from hone.optimization.v1 import jobs_pb2 as pb
from hone.specs import goal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.optimization.advisor.advice import Advice, Skipped, Tried
from services.optimization.advisor.economics import Economics
from services.optimization.advisor.goal import Goal
from services.optimization.advisor.precisions import Finding, Precision
from services.optimization.advisor.scenarios import Scenario, Targets
from services.optimization.advisor.serving.served import ServedAdvice, ServedCapacity, ServedFigures, ServingAdvice, TriedSettings
from services.optimization.advisor.serving.traffic import Traffic
from services.optimization.advisor.value import worth
from services.optimization.evaluation.metrics import Metric
from services.optimization.jobs.job import Result, State
from services.optimization.page import Live, LiveArm, Story, render
from services.optimization.page.advised.comparison import Compared, compared
from services.optimization.page.advised.explored import Kind, explored
from services.optimization.page.advised.facts import Facts, facts_of
from services.optimization.page.advised.risks import risks
from services.optimization.page.advised.targets import Standing, standings
from services.optimization.page.advised.verdict import verdict
from services.optimization.recipe import Step
from services.optimization.report import Candidate, Interval, Measurement, Report, Verdict
from services.repository.store import Origin
from tests.models import minilm_signature
from tests.optimization.advisor import priced
from tests.optimization.advisor.test_advisor_service import recommend
from tests.optimization.test_job_service import refused
from tests.optimization.test_page import HOSTILE, Read, accuracy, candidate, measurement

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
STORY = Story("0af3", "minilm@1", BEGIN, published="minilm@2", state="SUCCEEDED", started=BEGIN, ended=BEGIN)
UNPUBLISHED = Story("0af3", "minilm@1", BEGIN, state="REJECTED", started=BEGIN, ended=BEGIN)
CHOSEN = "student-2-onnx-int8"


def around(estimate: float, half: float = 0.0) -> Interval:
    return Interval(estimate=estimate, low=estimate - half, high=estimate + half)


def tried(name: str, speedup: float | None, lost: float | None = 0.0, size_ratio: float = 2.0, **told: Any) -> Tried:
    return Tried(
        name=name,
        steps=(Step(technique="export_onnx"),),
        expected_speedup=told.pop("expected", 2.0),
        speedup=None if speedup is None else around(speedup, 0.05 * speedup),
        size_ratio=size_ratio,
        loss=None if lost is None else around(lost, 0.004),
        seconds=21.0,
        **{"is_shape": False, "accepted": True, "reason": f"{name} was judged"} | told,
    )


TRIALS = (
    tried("onnx", 1.4, 0.0, 1.0),
    tried("shape-student-2-onnx-int8", 6.0, None, accepted=False, is_shape=True),
    tried(CHOSEN, 5.8, 0.004, 4.0),
    tried("onnx-int4", 1.1, 0.09, 6.0, accepted=False),
    tried("bf16", None, None, accepted=False, reason="this model cannot be cast"),
)


def figures(rows: float, p50_ms: float, p99_ms: float | None, unanswered: int = 0) -> ServedFigures:
    return ServedFigures(
        rows_per_second=around(rows, 0.04 * rows),
        p50_ms=p50_ms,
        p90_ms=p50_ms * 1.5,
        p99_ms=p99_ms,
        requests=1000,
        unanswered=unanswered,
        cpu_ms_per_row=20.0,
        asking_cpu_ms_per_row=0.2,
    )


def served(**changes: Any) -> ServedAdvice:
    found = ServingAdvice(
        settings={"instances": 2, "threads": 1, "cores": 2},
        kept=(TriedSettings(knob="parallelism", settings={"instances": 2, "threads": 1, "cores": 2}, gain=1.23, noise=1.04),),
        not_kept=(TriedSettings(knob="remembering", settings={"remember": False}, gain=1.01, noise=1.03),),
        left=("delay",),
        failed={"batching": "the service did not load it"},
    )
    return ServedAdvice(
        **{
            "advice": found,
            "original": figures(80, 180, 260),
            "candidate_default": figures(410, 36, 60),
            "candidate": figures(512, 30, 50),
            "speedup": around(6.4, 0.3),
            "settings_gain": around(1.25, 0.05),
            "cores": 2,
            "seconds": 120.0,
        }
        | changes
    )


def economics() -> Economics:
    return priced.economics(currency="EUR", rows_per_month=1e8, hours=20.0, hourly_rate=80.0)


def advice(**changes: Any) -> Advice:
    wanted = changes.pop("goal", Goal(targets=Targets(max_loss=0.01, min_served_speedup=6.0), economics=economics()))
    return Advice(
        **{
            "goal": wanted,
            "metric": Metric.ACCURACY,
            "trials": TRIALS,
            "stopped_because": "the target is met",
            "is_target_met": True,
            "front": ("onnx", CHOSEN),
            "seconds": 400.0,
            "served": served(),
            "worth": worth(economics(), priced.measured(80.0, around(6.4, 0.3), 0.0, 0.2)),
        }
        | changes
    )


FINAL = candidate(CHOSEN, "export_onnx,dynamic_int8", Verdict.ACCEPT, 5.7, 4.0, 0.004, qualities=(accuracy(0.004, 0.005),))
OTHER = candidate("onnx", "export_onnx", Verdict.ACCEPT, 1.4, 1.0, 0.0)
DATA = {"evaluation": {"examples": 400, "labelled": True}, "training": {"examples": 1200, "labelled": True}}


def report(found: Advice, *candidates: Candidate, chosen: str = CHOSEN) -> Report:
    return Report(
        original=measurement(90.9),
        candidates=candidates or (FINAL, OTHER),
        chosen=chosen,
        metric=Metric.ACCURACY,
        data=DATA,
        advice=found.model_dump(mode="json"),
    )


def partial(found: Advice) -> Report:
    """As a job leaves it that did not come to its end."""
    return Report(original=Measurement(size_bytes=90_900_000), metric=found.metric, advice=found.model_dump(mode="json"))


def facts(story: Story, found: Report) -> Facts:
    made = facts_of(story, found)
    assert made is not None
    return made


def titles(found: Report, story: Story = STORY) -> list[str]:
    return [risk.title for risk in risks(facts(story, found))]


@pytest.fixture(scope="module")
def page() -> str:
    return render(STORY, report(advice()))


# Verdict


def test_a_goal_that_is_met_is_told_with_what_it_brings(page: str) -> None:
    read = Read(page)
    assert read.headline.startswith("The goal is met: minilm@2, made from minilm@1 by student-2-onnx-int8, is served 6.40× as fast, with ")
    assert "0.40 points of accuracy lost; " in read.headline
    assert "EUR a month saved now, paid back within a month." in read.headline
    assert "Through the service 512 rows a second instead of 80.0: 6.40× (6.10× to 6.70×)" in read.text
    assert "95 % interval of the loss −0.10 to 0.90 points of accuracy; 1 at most may be lost" in read.text


def test_a_missed_target_is_named_with_the_nearest_that_was_reached() -> None:
    fault = "min_served_speedup: 5.20 (95 % interval 4.90 to 5.50) is not surely 6"
    found = verdict(facts(UNPUBLISHED, report(advice(missed=(fault,), served=served(speedup=around(5.2, 0.3))), chosen="")))
    assert found.sentence.startswith("The goal is missed and nothing was published. Not reached: the least speed-up through the service. ")
    assert f"The nearest is {CHOSEN}: it is served 5.20× as fast" in found.sentence
    assert "Missed, the least speed-up through the service: 5.20 (95 % interval 4.90 to 5.50) is not surely 6." in found.remarks
    assert not found.published
    assert {figure.name for figure in found.figures} >= {"served", "loss", "saving"}


def test_what_no_candidate_reached_is_told_with_the_nearest_and_why() -> None:
    lossy = candidate("int4", "int4_weight_only", Verdict.REJECT_ACCURACY, 2.0, 6.0, 0.05)
    found = verdict(facts(UNPUBLISHED, report(advice(served=None, worth=None, serving_note=""), lossy, chosen="")))
    assert "no recipe kept its quality" in found.sentence
    assert "The nearest is int4: it is 2.00× as fast by itself, with 5.00 points of accuracy lost." in found.sentence
    assert any("int4 was judged REJECT_ACCURACY" in remark for remark in found.remarks)


@pytest.mark.parametrize(("state", "told"), [("CANCELLED", "Cancelled before its end"), ("FAILED", "Failed before its end")])
def test_a_job_that_did_not_end_tells_the_best_so_far(state: str, told: str) -> None:
    story = Story("0af3", "minilm@1", BEGIN, state=state, failure="the disk is full" if state == "FAILED" else "")
    found = partial(advice(served=None, worth=None, stopped_because="it goes on", is_target_met=False))
    read = Read(render(story, found))
    assert read.headline == (
        f"{told}: nothing was published. The best of the 5 recipes that were tried is {CHOSEN}, in a short run: "
        "5.80× as fast by itself, 0.40 points of accuracy lost."
    )
    assert ("the disk is full" in read.text) == (state == "FAILED")
    assert "cannot be cast" in read.text
    assert "The job ended before them." in read.text


def test_a_job_that_accepted_nothing_so_far_tells_the_nearest() -> None:
    story = Story("0af3", "minilm@1", BEGIN, state="CANCELLED")
    found = verdict(facts(story, partial(advice(trials=(TRIALS[3],), served=None, worth=None))))
    assert "Of the 1 recipe that were tried none was accepted; the nearest is onnx-int4" in found.sentence
    none = verdict(facts(story, partial(advice(trials=TRIALS[4:], served=None, worth=None))))
    assert "none was judged yet" in none.sentence


def test_what_was_reached_and_then_cancelled_is_no_publication() -> None:
    story = Story("0af3", "minilm@1", BEGIN, state="CANCELLED")
    found = verdict(facts(story, report(advice())))
    assert found.sentence.startswith("Cancelled before its end: nothing was published. student-2-onnx-int8 reached the goal")
    assert not found.published


def test_without_serving_the_models_own_speed_is_told() -> None:
    found = report(
        advice(served=None, worth=None, serving_note="no room", goal=Goal(targets=Targets(max_loss=0.01), economics=economics()))
    )
    told = verdict(facts(STORY, found))
    assert "is 5.70× as fast by itself" in told.sentence
    assert "Nothing was measured through the service: no room" in told.remarks
    assert any(remark.startswith("Nothing was priced") for remark in told.remarks)
    assert "Nothing was measured through the service" in titles(found)


def test_a_loss_of_perplexity_is_a_share() -> None:
    quality = accuracy(0.0, 0.01, Metric.PERPLEXITY).model_copy(update={"difference": around(0.02, 0.01)})
    lm = FINAL.model_copy(update={"qualities": (quality,)})
    found = report(advice(metric=Metric.PERPLEXITY), lm).model_copy(update={"metric": Metric.PERPLEXITY})
    assert "2.00 % more perplexity" in verdict(facts(STORY, found)).sentence


# The goal


def test_every_target_stands_beside_what_was_reached() -> None:
    targets = Targets(max_loss=0.01, min_speedup=5.0, min_served_speedup=6.2, max_p99_ms=40.0, max_size_bytes=30_000_000)
    capacity = ServedCapacity(max_p99_ms=40.0, callers=8, figures=figures(400, 20, 39))
    found = advice(goal=Goal(targets=targets), served=served(candidate_capacity=capacity), worth=None)
    rows = {target.asked: target.standing for target in standings(facts(STORY, report(found)))}
    assert rows == {
        "1 point of accuracy": Standing.MET,
        "5×": Standing.MET,
        "6.2×": Standing.MISSED,
        "40 ms": Standing.MET,
        "30.0\u00a0MB": Standing.MET,
    }
    assert "Published, though this was not reached: the least speed-up through the service" in verdict(facts(STORY, report(found))).sentence


def test_the_goals_own_gates_are_told_and_not_the_jobs_defaults(page: str) -> None:
    assert "accuracy at most 1 points lost" in Read(page).text
    default = render(STORY, report(advice(goal=Goal(scenario=Scenario.RESOURCE))))
    assert "accuracy at most 10 points lost, size ratio at least" in Read(default).text
    assert "Objective among those accepted: size" in Read(default).text


def test_what_was_not_measured_meets_nothing() -> None:
    found = standings(facts(Story("0af3", "minilm@1", BEGIN, state="CANCELLED"), partial(advice(served=None))))
    assert {target.standing for target in found} == {Standing.UNKNOWN}


# What was tried


def test_the_plot_holds_what_was_judged_and_strokes_for_shapes() -> None:
    found = explored(facts(STORY, report(advice())))
    assert [(mark.point.name, mark.kind) for mark in found.marks] == [
        ("original", Kind.ORIGINAL),
        ("onnx", Kind.ACCEPTED),
        (CHOSEN, Kind.ACCEPTED),
        ("onnx-int4", Kind.NOT_ACCEPTED),
    ]
    assert [mark.point.name for mark in found.marks if mark.point.chosen] == [CHOSEN]
    assert found.shapes == (("shape-student-2-onnx-int8", 6.0),)
    assert [point.name for point in found.front] == ["onnx", CHOSEN]
    assert (found.max_loss, found.min_speedup) == (1.0, 6.0)
    assert [mark.size_share for mark in found.marks] == [1.0, 1.0, 0.25, pytest.approx(1 / 6)]


def test_every_trial_is_told_with_what_came_of_it(page: str) -> None:
    text = Read(page).text
    assert "student-2-onnx-int8 ★ 2.00× 5.80 5.51 to 6.09 4.00× 0.40 0.00 to 0.80 21.0 s accepted, on the Pareto front" in text
    assert "shape only: shape-student-2-onnx-int8 was judged" in text
    assert "not accepted: onnx-int4 was judged" in text
    assert "could not be made: this model cannot be cast" in text
    assert "3 recipes and the original, 2 on the Pareto front, 1 measured for their speed alone" in text


def test_what_was_served_in_the_end_is_a_mark_of_its_own(page: str) -> None:
    found = explored(facts(STORY, report(advice())))
    assert found.served is not None
    assert found.served.gain == around(6.4, 0.3)
    assert found.served.quality.estimate == pytest.approx(0.4)
    assert explored(facts(STORY, report(advice(served=None)))).served is None
    assert "◇" in Read(page).text


def test_what_was_skipped_is_told_with_its_chance() -> None:
    skipped = (Skipped(name="int4", expected_speedup=0.9, chance=0.0123, basis="4 trials on this machine"),)
    assert "int4 0.900× 1.2 % 4 trials on this machine" in Read(render(STORY, report(advice(skipped=skipped)))).text


def test_precisions_stand_with_why_they_do_not_qualify() -> None:
    findings = (
        Finding(
            precision=Precision.INT8, recipe="onnx-int8", speedup=around(2.0, 0.1), size_ratio=4.0, qualifies=True, reason="all limits"
        ),
        Finding(precision=Precision.BF16, reason="this processor emulates BF16", note="AMX is lacking"),
    )
    text = Read(render(STORY, report(advice(precisions=findings)))).text
    assert "INT8 yes onnx-int8 2.00 1.90 to 2.10 4.00× all limits" in text
    assert "BF16 no this processor emulates BF16 AMX is lacking" in text


def test_nothing_judged_is_no_plot() -> None:
    story = Story("0af3", "minilm@1", BEGIN, state="CANCELLED")
    assert Read(render(story, partial(advice(trials=TRIALS[1:2], served=None, worth=None)))).count("svg") == 0


# Before and after


def test_versions_stand_side_by_side_under_each_load() -> None:
    rate = {"original_at_rate": figures(40, 220, None, unanswered=40), "candidate_at_rate": figures(40, 12, 31)}
    capacity = {"candidate_capacity": ServedCapacity(max_p99_ms=40.0, callers=8, figures=figures(400, 20, 39))}
    wanted = Goal(targets=Targets(max_loss=0.01, max_p99_ms=40.0), traffic=Traffic(rate=40.0))
    text = Read(render(STORY, report(advice(goal=wanted, served=served(**rate, **capacity), worth=None)))).text
    assert "16 callers, each asking again as soon as answered" in text
    assert "chosen, its own settings 512 492 to 532 30.0 50.0 20.0 0 of 1000 6.40×" in text
    assert "At 40 requests a second" in text
    assert "40.0 38.4 to 41.6 220 not answered 20.0 40 of 1040" in text
    assert "As many callers as stay within a p99 of 40 ms" in text
    assert "Not within it, even for a single caller: original." in text
    assert "Refused or failed: original at its rate: 40 of 1040." in text


def test_settings_are_told_kept_left_not_tried_and_failed(page: str) -> None:
    text = Read(page).text
    assert "parallelism cores=2, instances=2, threads=1 1.23× 1.04× kept" in text
    assert "remembering remember=False 1.01× 1.03× left" in text
    assert "delay not tried: the time was over" in text
    assert "batching could not be tried: the service did not load it" in text
    assert "of it 1.25× (1.20 to 1.30) by its settings: cores=2, instances=2, threads=1." in text


def test_without_settings_of_its_own_the_chosen_stands_once() -> None:
    text = Read(render(STORY, report(advice(served=served(advice=ServingAdvice(settings={}, kept=(), not_kept=())))))).text
    assert text.count("chosen, default settings") == 1
    assert "its own settings" not in text
    assert "none that were tried are better" in text


# Money


def test_money_is_told_with_ranges_and_drawn(page: str) -> None:
    read, found = Read(page), advice().worth
    assert found is not None
    assert found.verdict in read.text
    assert "instances now 7 → 1 (1 to 2) saved now" in read.text
    assert "Cumulative net in EUR: " in read.text
    assert "What the net benefit hangs on, the widest first: " in read.text
    for line in found.left_out:
        assert line in read.text


def test_without_prices_there_is_no_money() -> None:
    read = Read(render(STORY, report(advice(goal=Goal(targets=Targets(max_loss=0.01)), worth=None))))
    assert "Cumulative net" not in read.text
    assert not any(attributes.get("id") == "money" for _, attributes in read.tags)


@pytest.mark.parametrize(
    ("told", "speedup", "words"),
    [
        ({"horizon_months": 1}, around(6.4, 0.3), "paid back"),
        ({"one_off_cost": 1e5}, around(6.4, 0.3), "paid back in"),
        ({"peak_rows_per_second": 1.0, "hours": 1.0, "hourly_rate": 1.0}, around(6.4, 0.3), "not paid back"),
        ({}, around(0.5, 0.01), "a month more"),
    ],
)
def test_any_worth_is_told_and_drawn(told: dict[str, Any], speedup: Interval, words: str) -> None:
    found = worth(priced.economics(**told), priced.measured(80.0, speedup, 0.0, 0.2))
    text = Read(render(STORY, report(advice(worth=found)))).text
    assert words in text
    assert "Cumulative net in USD" in text


# Risks


def test_intervals_that_come_near_their_limits_are_risks() -> None:
    assert {"The loss is near its limit", "The served speed-up is near its target"} <= set(titles(report(advice())))
    sure = FINAL.model_copy(update={"qualities": (accuracy(0.0, 0.002),)})
    wanted = Goal(targets=Targets(max_loss=0.01, min_served_speedup=3.0))
    assert not {"The loss is near its limit", "The served speed-up is near its target"} & set(titles(report(advice(goal=wanted), sure)))


def test_an_interval_wider_than_the_limit_asks_for_more_examples() -> None:
    wide = FINAL.model_copy(update={"qualities": (accuracy(0.0, 0.006),)})
    (risk,) = [risk for risk in risks(facts(STORY, report(advice(), wide))) if risk.title.startswith("The loss is known")]
    assert "1.20 points of accuracy wide, wider than the 1 that may be lost, from 400 examples" in risk.sentence
    better = FINAL.model_copy(update={"qualities": (accuracy(-0.02, 0.006),)})
    assert not [title for title in titles(report(advice(), better)) if title.startswith("The loss is known")]
    narrow = FINAL.model_copy(update={"qualities": (accuracy(0.0, 0.004),)})
    assert not [title for title in titles(report(advice(), narrow)) if title.startswith("The loss is known")]


def test_answers_that_change_are_told_with_the_worst() -> None:
    (risk,) = [risk for risk in risks(facts(STORY, report(advice()))) if risk.title.startswith("Answers are not")]
    assert "After export_onnx → dynamic_int8 they agree with the original's at 0.9960 in the mean, and at 0.6100" in risk.sentence
    exact = FINAL.model_copy(update={"min_fidelity": 1.0})
    assert not [title for title in titles(report(advice(), exact)) if title.startswith("Answers are not")]


def test_only_what_was_trained_asks_where_its_examples_come_from() -> None:
    taught = FINAL.model_copy(update={"steps": (Step(technique="distill", parameters={"layers": 1}),)})
    question = "Whether users ask what it was trained on is not known"
    assert question in titles(report(advice(), taught))
    assert question not in titles(report(advice()))


@pytest.mark.parametrize(
    ("traffic", "is_told"),
    [(Traffic(), True), (Traffic(rate=3.0), True), (Traffic(texts=("a",)), False), (Traffic(token_lengths=(4,)), False)],
)
def test_traffic_that_was_stated_is_a_risk(traffic: Traffic, is_told: bool) -> None:
    assert ("The traffic was not recorded" in titles(report(advice(goal=Goal(traffic=traffic))))) == is_told


def test_callers_on_the_same_cores_are_told_where_they_took_much() -> None:
    title = "Those who asked shared the cores with the service"
    assert title not in titles(report(advice()))
    busy = figures(512, 30, 50).model_copy(update={"cpu_ms_per_row": 3.0, "asking_cpu_ms_per_row": 1.0})
    (risk,) = [found for found in risks(facts(STORY, report(advice(served=served(candidate=busy))))) if found.title == title]
    assert "They took 25 % of the processor time beside the chosen version and 1 % beside the original" in risk.sentence


def test_settings_for_a_number_of_cores_are_told() -> None:
    title = "Settings that hold on this number of cores only"
    assert title in titles(report(advice()))
    assert title not in titles(report(advice(served=served(advice=ServingAdvice(settings={}, kept=(), not_kept=())))))


def test_an_input_that_turns_the_sum_is_named() -> None:
    measured = priced.measured(80.0, around(6.4, 0.3))
    open_ = worth(priced.economics(one_off_cost=50_000.0), measured)
    surely = worth(priced.economics(), measured)
    assert [title for title in titles(report(advice(worth=open_))) if title.startswith("Whether it pays hangs on one input: ")]
    assert not [title for title in titles(report(advice(worth=surely))) if title.startswith("Whether it pays")]


def test_nothing_measured_is_no_risk() -> None:
    assert titles(partial(advice(served=None, worth=None)), Story("0af3", "minilm@1", BEGIN, state="CANCELLED")) == []


# Live

LIVE = Live(
    (
        LiveArm("stable", 1, 9000, 0.0, p50_ms=90.0, p99_ms=200.0),
        LiveArm("advised", 2, 1000, 0.002, p50_ms=15.0, p99_ms=25.0, rows_per_second=500.0),
    ),
    "wait: 200 more calls",
)


def test_live_figures_stand_beside_what_was_predicted() -> None:
    rows = {(row.arm, row.name): row for row in compared(facts(STORY, report(advice())), LIVE)}
    faster = rows["advised", "p50, times as fast as stable"]
    assert (faster.predicted, faster.live, faster.is_close) == (6.0, 6.0, True)
    assert rows["advised", "p50"].is_close is False
    assert rows["advised", "rows a second"].is_close
    assert ("stable", "rows a second") not in rows
    assert rows["stable", "p50"].ratio == 0.5
    assert rows["advised", "calls that failed"].ratio is None


def test_live_figures_are_on_the_page_when_they_were_told(page: str) -> None:
    text = Read(render(STORY, report(advice()), LIVE)).text
    assert "wait: 200 more calls" in text
    assert "advised p50, times as fast as stable 6.00× 6.00× 1.00 yes" in text
    assert "advised calls that failed 0 % 0.2 %" in text
    assert "Live beside predicted" not in Read(page).text


@pytest.mark.parametrize(("live", "is_close"), [(84.9, False), (85.1, True), (114.9, True), (115.1, False)])
def test_close_is_within_fifteen_percent(live: float, is_close: bool) -> None:
    assert Compared("a", "p50", 100.0, live, " ms").is_close is is_close


def test_an_arm_of_another_version_has_no_prediction() -> None:
    rows = compared(facts(STORY, report(advice())), Live((LiveArm("old", 7, 10, 0.0, p50_ms=3.0),)))
    assert [row.predicted for row in rows] == [None] * len(rows)
    assert [row.live for row in rows if row.name == "p50"] == [3.0]


# The page as a whole


def test_the_recommendation_comes_first(page: str) -> None:
    ids = [attributes["id"] for tag, attributes in Read(page).tags if tag == "section"]
    assert ids[:7] == ["goal", "explored", "serving", "tried", "money", "risks", "candidates"]
    found = [attributes["id"] for _, attributes in Read(page).tags if "id" in attributes]
    assert len(found) == len(set(found))


def test_equal_facts_render_equal_text(page: str) -> None:
    assert render(STORY, report(advice())) == page


def test_a_job_without_a_goal_has_no_recommendation() -> None:
    read = Read(render(STORY, report(advice()).model_copy(update={"advice": {}})))
    assert read.headline.startswith("minilm@2 was published: ")
    assert not {"goal", "explored", "risks"} & {attributes.get("id") for _, attributes in read.tags}


def test_texts_that_users_sent_are_not_passed_on() -> None:
    wanted = Goal(traffic=Traffic(texts=("a private question", "another")))
    read = Read(render(STORY, report(advice(goal=wanted))))
    assert "private question" not in "".join([*read.words, *read.scripts])
    assert Advice.model_validate(Report.model_validate_json(read.scripts[0]).advice).trials == TRIALS


def test_hostile_texts_are_texts() -> None:
    trials = (tried(HOSTILE, 2.0, 0.002, reason=HOSTILE), tried("b", None, None, accepted=False, reason=HOSTILE))
    settings = ServingAdvice(settings={HOSTILE: HOSTILE}, kept=(), not_kept=(), left=(HOSTILE,), failed={HOSTILE: HOSTILE})
    found = advice(trials=trials, served=served(advice=settings), missed=(HOSTILE,), stopped_because=HOSTILE, serving_note=HOSTILE)
    final = FINAL.model_copy(update={"name": HOSTILE})
    live = Live((LiveArm(HOSTILE, 2, 1, 0.0, p50_ms=1.0),), HOSTILE)
    for story, chosen in ((STORY, HOSTILE), (UNPUBLISHED, "")):
        page = render(story, report(found, final, chosen=chosen), live)
        read = Read(page)
        assert [attributes["type"] for tag, attributes in read.tags if tag == "script"] == ["application/json"]
        assert read.count("b") == 0
        assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
        assert "<!--" not in page


finite = st.floats(-1e6, 1e6)
ratios = st.floats(1e-3, 1e4)
trials = st.builds(
    Tried,
    name=st.sampled_from(["a", "b", "$a$", CHOSEN]),
    steps=st.just(()),
    is_shape=st.booleans(),
    expected_speedup=st.floats(0, 1e4),
    speedup=st.none() | st.builds(Interval, estimate=ratios, low=ratios, high=ratios),
    size_ratio=st.floats(0, 1e4),
    loss=st.none() | st.builds(Interval, estimate=finite, low=finite, high=finite),
    accepted=st.booleans(),
    reason=st.text(max_size=5),
    seconds=st.floats(0, 1e5),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(trials, max_size=5), st.sampled_from(Scenario), st.booleans())
def test_any_search_renders(found: list[Tried], scenario: Scenario, has_ended: bool) -> None:
    told = advice(trials=tuple(found), goal=Goal(scenario=scenario), served=None, worth=None)
    story = UNPUBLISHED if has_ended else Story("0af3", "minilm@1", BEGIN, state="CANCELLED")
    read = Read(render(story, report(told, chosen="") if has_ended else partial(told)))
    assert Advice.model_validate(Report.model_validate_json(read.scripts[0]).advice) == told
    assert "nothing was published" in read.headline


# The door


async def ended(doors: Any) -> str:
    with doors.repository.staging() as staged:
        (staged / "config.json").write_text('{"num_hidden_layers": 6, "intermediate_size": 1536}')
        (staged / "model.safetensors").write_bytes(bytes(1000))
        doors.repository.seal(staged, "m", minilm_signature(), Origin())
    job = await recommend(doors, goal())
    found = partial(advice(served=None, worth=None, stopped_because="it goes on"))
    doors.store.move(job.id, State.CANCELLED, "cancelled", Result(report=found.model_dump_json()))
    return job.id


async def test_the_door_answers_the_page_with_live_figures(doors: Any) -> None:
    live = pb.LiveFigures(arm="advised", version=2, calls=10, error_rate=0.5, p50_ms=3.0)
    request = pb.GetReportPageRequest(id=await ended(doors), live=[live], live_remark="wait a little")
    text = Read((await doors.jobs.GetReportPage(request)).html).text
    assert "Cancelled before its end: nothing was published" in text
    assert "wait a little" in text
    assert "advised p50 3.00 ms" in text


async def test_the_command_writes_the_page_of_any_job(doors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job_id = await ended(doors)
    for arguments, written in (
        (["report", job_id], f"report-{job_id}.html"),
        (["report", job_id, "--out", "a.html"], "a.html"),
        (["jobs", "report", job_id, "--html", "b.html"], "b.html"),
    ):
        result = await asyncio.to_thread(CliRunner().invoke, app, ["--optimization", doors.address, *arguments])
        assert result.exit_code == 0, result.output
        assert written in result.output.replace("\n", "")
        assert "Cancelled before its end" in (tmp_path / written).read_text(encoding="utf-8")


async def test_a_job_without_a_report_has_no_page(doors: Any, tmp_path: Path) -> None:
    arguments = ["--optimization", doors.address, "report", "nobody", "--out", str(tmp_path / "a.html")]
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert isinstance(result.exception, grpc.RpcError)
    assert not (tmp_path / "a.html").exists()


async def test_the_client_passes_live_figures_on(doors: Any) -> None:
    job_id = await ended(doors)
    live = [pb.LiveFigures(arm="canary", version=2, calls=10, p50_ms=3.0)]

    def asked() -> str:
        with Client(optimization=doors.address) as client:
            return client.jobs.report_page(job_id, live=live, live_remark="from the client")

    async with AsyncClient(optimization=doors.address) as client:
        pages = [await asyncio.to_thread(asked), await client.jobs.report_page(job_id, live=live, live_remark="from the client")]
    assert pages[0] == pages[1]
    assert "from the client" in pages[0]
    assert "canary" in pages[0]


@pytest.mark.parametrize(
    ("field", "live"),
    [
        ("live[0].arm", pb.LiveFigures()),
        ("live[0].calls", pb.LiveFigures(arm="a", calls=-1)),
        ("live[0].error_rate", pb.LiveFigures(arm="a", error_rate=1.5)),
        ("live[0].p99_ms", pb.LiveFigures(arm="a", p99_ms=float("nan"))),
        ("live[0].rows_per_second", pb.LiveFigures(arm="a", rows_per_second=float("inf"))),
    ],
)
async def test_live_figures_that_cannot_be_are_refused(doors: Any, field: str, live: pb.LiveFigures) -> None:
    code, details = await refused(doors.jobs.GetReportPage(pb.GetReportPageRequest(id="nobody", live=[live])))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith(f"{field}: ")
