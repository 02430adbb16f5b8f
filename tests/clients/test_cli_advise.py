"""`hone advise` and `hone worth` as people type them: plans, recorded traffic, prices, mistakes, Ctrl-C."""

import json
import re
from pathlib import Path
from typing import Any

import hone as client
import pytest
from hone.cli import app, prices, recorded
from hone.optimization.v1 import advisor_pb2 as pb
from hone.optimization.v1 import goals_pb2, jobs_pb2
from typer.testing import CliRunner

from benchmarks.sentences import sentences
from tests.conftest import Suite

JOB = re.compile(r"[0-9a-f]{32}")
WANTED = ("advise", "minilm", "--evaluation", "held-out.txt")


@pytest.fixture(autouse=True)
def _examples(hone: CliRunner) -> None:
    Path("held-out.txt").write_text("\n".join(sentences(24, seed=12)))


def told(runner: CliRunner, *arguments: str, status: int = 0) -> str:
    result = runner.invoke(app, arguments)
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


def refusal(runner: CliRunner, *arguments: str) -> str:
    """What the command says as it ends with a fault: by `main`, which answers 1, or by the command line, which answers 2."""
    result = runner.invoke(app, arguments)
    assert result.exit_code != 0
    return result.output + str(result.exception)


def write(name: str, *lines: object) -> str:
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


@pytest.fixture
def cancelled(suite: Suite) -> Any:
    """Ends the jobs that a test leaves."""
    yield
    with suite.client() as service:
        for job in service.jobs.list():
            service.jobs.cancel(job.id)
            service.jobs.wait(job.id)


def test_a_plan_is_told_before_anything_is_created(hone: CliRunner, suite: Suite) -> None:
    with suite.client() as service:
        before = [job.id for job in service.jobs.list()]
        plan = told(hone, *WANTED, "--scenario", "resource", "--max-size-mb", "40", "--budget", "2m", "--dry-run")
        assert [job.id for job in service.jobs.list()] == before
    assert re.search(r"onnx-int8\s", plan)
    assert "the budget is 120 s" in plan


def test_a_search_that_finds_nothing_says_why(hone: CliRunner, suite: Suite) -> None:
    """No recipe is five hundred times as fast. What it was worth cannot be told then."""
    output = told(hone, *WANTED, "--min-speedup", "500", "--budget", "40s", status=1)
    assert "likely to meet the target; the goal was not met" in output
    assert "not tried, too unlikely to meet the goal: " in output
    assert "rejected" in output
    with suite.client() as service:
        job = next(iter(service.jobs.list()))
        assert job.spec.goal.targets.min_speedup == 500
        assert job.spec.budget.seconds == 40
    assert "no prices" in refusal(hone, "worth", job.id)
    assert "chose nothing" in refusal(hone, "worth", job.id, "--price", "1", "--peak", "10")


@pytest.mark.usefixtures("cancelled")
def test_detached_it_prints_the_job_alone(hone: CliRunner, suite: Suite) -> None:
    judged = ("--metric", "fidelity", "--min-examples", "7", "--cores", "1")
    printed = told(hone, *WANTED, *judged, "--precisions-only", "--detach").strip()
    assert JOB.fullmatch(printed)
    with suite.client() as service:
        spec = service.jobs.get(printed).spec
    assert spec.goal.precisions_only
    assert (spec.metric, spec.gates.min_examples, spec.budget.cores) == (jobs_pb2.METRIC_FIDELITY, 7, 1)
    assert "FAILED_PRECONDITION" in refusal(hone, "worth", printed)


@pytest.mark.usefixtures("cancelled")
def test_ctrl_c_ends_the_watching_alone(hone: CliRunner, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: object, job_id: str, **_: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("hone.client.Jobs.watch", interrupt)
        result = hone.invoke(app, [*WANTED, "--precisions-only"])
    assert result.exit_code != 0
    found = re.search(r"`hone jobs watch ([0-9a-f]{32})`", result.output)
    assert found is not None
    with suite.client() as service:
        assert service.jobs.get(found[1]).state in (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--max-loss", "banana", "'banana' is no share"),
        ("--max-loss", "nan", "'nan' is no share"),
        ("--budget", "5x", "'5x' is no time"),
        ("--budget", "m", "'m' is no time"),
        ("--max-size-mb", "inf", "inf is no size"),
        ("--traffic", "nowhere.jsonl", "nowhere.jsonl"),
    ],
)
def test_an_option_that_is_none_is_told_with_status_2(hone: CliRunner, option: str, value: str, sentence: str) -> None:
    output = told(hone, *WANTED, option, value, status=2)
    assert option in output
    assert sentence in output


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("--max-loss", "200%"), "spec.goal.targets.max_loss"),
        (("--budget", "-5"), "spec.budget.seconds"),
        (("--scenario", "banana"), "SCENARIO_BANANA"),
        (("--metric", "banana"), "METRIC_BANANA"),
        (("--min-examples", "0"), "spec.gates.min_examples"),
        (("--price", "-1"), "spec.goal.economics.instance_hour_price"),
        (("--at-rows-per-second", "5"), "spec.goal.targets.at_rows_per_second"),
    ],
)
def test_a_goal_that_is_none_is_refused(hone: CliRunner, arguments: tuple[str, str], field: str) -> None:
    assert field in refusal(hone, *WANTED, *arguments, "--dry-run")


def test_recorded_texts_and_times_are_played() -> None:
    found = recorded.traffic(
        Path(
            write(
                "log.jsonl",
                {"at": "2026-05-04T09:30:00Z", "text": "a"},
                {"at": "2026-05-04T09:30:00.250Z", "text": ["b", "c"]},
                {"at": "2026-05-04T11:30:01+02:00", "text": "d"},
            )
        )
    )
    assert found == goals_pb2.Traffic(texts=["a", "b", "c", "d"], request_rows=[1, 2, 1], gaps_s=[0.25, 0.75])


def test_lengths_and_counts_alone_are_traffic_too() -> None:
    lengths = recorded.traffic(Path(write("lengths.jsonl", {"tokens": 7, "at": 1}, {"tokens": [3, 4], "at": 1.5})))
    assert lengths == goals_pb2.Traffic(token_lengths=[7, 3, 4], request_rows=[1, 2], gaps_s=[0.5])
    assert recorded.traffic(Path(write("rows.jsonl", {"rows": 4}, {"rows": 2}))) == goals_pb2.Traffic(request_rows=[4, 2])


@pytest.mark.parametrize(
    ("lines", "place", "fault"),
    [
        ((), "log.jsonl", "holds no request"),
        (({"text": "a"}, {"txt": "b"}), "log.jsonl:2", "txt: not one of text, tokens, rows, at"),
        (({"text": "a"}, {"tokens": 2}), "log.jsonl:2", "where the first line has text"),
        (({"text": "a", "tokens": 1},), "log.jsonl:1", "tell one of them"),
        (({"text": " "},), "log.jsonl:1", "text"),
        (({"tokens": []},), "log.jsonl:1", "tokens"),
        (({"rows": True},), "log.jsonl:1", "rows"),
        (({"rows": [1]},), "log.jsonl:1", "rows"),
        (({"at": 2}, {"at": 1}), "log.jsonl:2", "before the line above"),
        (({"at": 2},), "log.jsonl", "has no rate"),
        (({"at": "noon"}, {"at": "night"}), "log.jsonl:1", "'noon' is no time"),
        (({"at": True}, {"at": 2}), "log.jsonl:1", "must be seconds"),
        (("a",), "log.jsonl:1", "must be an object"),
        (({"rows": 60_000}, {"rows": 60_000}), "log.jsonl", "keep the busiest hour"),
    ],
)
def test_a_line_that_is_no_request_is_named(lines: tuple[object, ...], place: str, fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)) as caught:
        recorded.traffic(Path(write("log.jsonl", *lines)))
    assert str(caught.value).startswith(f"{place}: ")


def test_a_recorded_log_is_the_goals_traffic(hone: CliRunner) -> None:
    log = write("log.jsonl", {"text": "where is my parcel?", "at": 0}, {"text": "thank you", "at": 0.5})
    assert "onnx" in told(hone, *WANTED, "--traffic", log, "--rate", "20", "--dry-run")
    assert "tells how many rows" in told(hone, *WANTED, "--traffic", log, "--rows-per-request", "2", "--dry-run", status=2)


def test_options_win_over_the_file_and_the_file_over_what_was_known() -> None:
    path = Path(write("prices.json", {"instance_hour_price": 0.4, "quality_value": 100, "horizon_months": 24}))
    known = goals_pb2.Economics(currency="EUR", instance_hour_price=9, peak_rows_per_second=50)
    found = prices.economics(path, {"instance_hour_price": 0.7, "hours": 0}, known)
    assert found == goals_pb2.Economics(
        currency="EUR", instance_hour_price=0.7, peak_rows_per_second=50, quality_value=100, horizon_months=24
    )
    assert prices.economics(None, {"hours": 0, "currency": ""}) is None


def test_every_price_can_be_told_by_a_file() -> None:
    whole = {field.name: "EUR" if field.name == "currency" else 3 for field in goals_pb2.Economics.DESCRIPTOR.fields}
    assert prices.economics(Path(write("prices.json", whole)), {}) == goals_pb2.Economics(**whole)  # type: ignore[arg-type]


def test_prices_that_are_none_are_all_named() -> None:
    path = Path(write("prices.json", {"price": 1, "utilisation": 0.5, "hours": "two", "horizon_months": 1.5, "currency": 3}))
    with pytest.raises(ValueError, match=r"prices\.json") as caught:
        prices.economics(path, {})
    for name in ("price: not one of", "utilisation: not one of", "hours: must be a number", "horizon_months: must be", "currency: must be"):
        assert name in str(caught.value)


def test_what_was_found_is_told_also_of_a_job_that_was_detached(hone: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """With brackets in the server's words, and every precision."""
    int8 = pb.PrecisionFinding(precision=pb.PRECISION_INT8, recipe="onnx-int8", size_ratio=4, reason="speed-up: [low]", note="no [VNNI]")
    int8.speedup.CopyFrom(jobs_pb2.Interval(estimate=1.5, low=1.4, high=1.6))
    emulated = pb.PrecisionFinding(precision=pb.PRECISION_BF16, reason="this processor emulates BF16")
    found = pb.Recommendation(
        trials=[pb.Trial(name="onnx-int4", reason="no [kernel] of [/it]")],
        stopped_because="the search was cut short",
        precisions=[int8, emulated],
        missed=["max_p99_ms: 30.0 ms is more than [20] ms"],
        serving_note="serving could not be tried",
    )
    job = jobs_pb2.Job(state=jobs_pb2.JOB_STATE_CANCELLED)
    job.spec.goal.SetInParent()
    job.report.SetInParent()
    monkeypatch.setattr(client.advisor.Advisor, "get", lambda self, job_id: found)
    monkeypatch.setattr(client.client.Jobs, "get", lambda self, job_id: job)
    output = told(hone, "jobs", "report", "a-job", status=1)
    for part in ("no [kernel] of [/it]", "cut short; the goal was not met", "more than [20] ms", "serving could not be tried", "cancelled"):
        assert part in output
    for part in ("onnx-int8", "1.40–1.60", "speed-up: [low]", "no [VNNI]", "this processor emulates BF16"):
        assert part in output


def test_worth_begins_with_what_the_job_was_told(hone: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """And prints what hangs on what."""
    asked: list[goals_pb2.Economics] = []
    exact = jobs_pb2.Interval(estimate=3, low=3, high=3)
    month = pb.Month(month=1, instances_before=exact, instances_after=exact, saving=jobs_pb2.Interval(estimate=120, low=90, high=150))
    swings = [pb.Swing(name=f"input-{number}", less=1, more=2, net_at_less=-5, net_at_more=5000) for number in range(7)]
    worth = pb.Worth(currency="EUR", months=[month], verdict="Pays [really].", sensitivity=swings, left_out=["ROI: nothing is spent"])
    worth.payback_months.estimate = 2
    goal = goals_pb2.Goal(economics=goals_pb2.Economics(currency="EUR", instance_hour_price=1, peak_rows_per_second=10))

    def answer(self: object, job_id: str, economics: goals_pb2.Economics) -> pb.Worth:
        asked.append(economics)
        return worth

    monkeypatch.setattr(client.advisor.Advisor, "get", lambda self, job_id: pb.Recommendation(goal=goal))
    monkeypatch.setattr(client.advisor.Advisor, "worth", answer)
    output = told(hone, "worth", "a-job", "--price", "2")
    assert asked == [goals_pb2.Economics(currency="EUR", instance_hour_price=2, peak_rows_per_second=10)]
    for part in ("Pays [really].", "90 to 150", "never", "input-4", "-5 to 5,000", "left out: ROI: nothing is spent"):
        assert part in output
    assert "input-5" not in output
