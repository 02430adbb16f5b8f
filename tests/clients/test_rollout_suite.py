"""Rolling advised versions out with both clients and with the command, against the running suite.

The searches themselves are tested where they run: here their jobs are written into the suite's database as they end.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import hone.aio
import numpy as np
import pytest
from hone.cli import app
from hone.rollout_status import Decision, Status
from typer.testing import CliRunner

from services.optimization.advisor.advice import Advice
from services.optimization.advisor.goal import Goal
from services.optimization.advisor.serving.served import ServedAdvice, ServedFigures, ServingAdvice
from services.optimization.jobs.job import Job, State
from services.optimization.jobs.store import JobStore
from services.optimization.report import Candidate, Interval, Measurement, Report, Verdict, WorkloadResult
from services.optimization.spec import Spec
from tests.conftest import Suite
from tests.inference.traffic.conftest import multiplying

MODEL = "advisable"
GOOD, BAD, REJECTED, ELSEWHERE = "1" * 32, "2" * 32, "3" * 32, "4" * 32  # jobs
WAIT_S = 60.0  # only a broken suite takes so long


def ended(job_id: str, published: str, state: State = State.SUCCEEDED) -> Job:
    """A job that sought something better than version 1, and published what it found."""

    def figures(rows_per_second: float, p50_ms: float) -> ServedFigures:
        rows = Interval(estimate=rows_per_second, low=rows_per_second, high=rows_per_second)
        times = {"p50_ms": p50_ms, "p90_ms": 2 * p50_ms, "p99_ms": 3 * p50_ms}
        return ServedFigures(rows_per_second=rows, requests=1000, unanswered=0, cpu_ms_per_row=1, asking_cpu_ms_per_row=0.1, **times)

    twice = Interval(estimate=2, low=1.9, high=2.1)
    serving = ServedAdvice(
        advice=ServingAdvice(settings={}, kept=(), not_kept=()),
        original=figures(100, 4),
        candidate_default=figures(200, 2),
        candidate=figures(200, 2),
        speedup=twice,
        settings_gain=twice,
        cores=2,
        seconds=60,
    )
    fast = WorkloadResult(batch_rows=1, tokens=0, p50_ms=1, p90_ms=1, p99_ms=1, rows_per_second=1000, samples=9)
    measured = Measurement(size_bytes=1000, workloads=(fast,))
    chosen = Candidate(name="best", steps=(), verdict=Verdict.ACCEPT, reason="good", measurement=measured, fidelity=twice, speedup=twice)
    advice = Advice(goal=Goal(), stopped_because="the target is met", is_target_met=True, served=serving)
    report = Report(original=measured, candidates=(chosen,), chosen="best", advice=advice.model_dump(mode="json"))
    spec, now = Spec(source=f"{MODEL}@1", goal=Goal()), datetime.now(UTC)
    return Job(
        id=job_id,
        request_id=job_id,
        fingerprint=spec.fingerprint,
        spec=spec.model_dump_json(),
        source=spec.source,
        created=now,
        state=state,
        started=now,
        ended=now,
        report=report.model_dump_json(),
        published=published,
    )


@pytest.fixture(scope="module")
def client(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With 1: y = 2 x (stable), 2: all but the same, 3: fails for large x; GOOD published 2 and BAD 3."""
    root = tmp_path_factory.mktemp("advisable")
    store = JobStore.at(suite.folder / "optimization")
    for job in (
        ended(GOOD, f"{MODEL}@2"),
        ended(BAD, f"{MODEL}@3"),
        ended(REJECTED, "", State.REJECTED),
        ended(ELSEWHERE, "other@1"),
    ):
        store.create(job)
    store.close()
    with suite.client() as connected:
        connected.models.push(multiplying(root / "original", 2), MODEL, channels=["stable"])
        connected.models.push(multiplying(root / "good", 2.001), MODEL)
        connected.models.push(multiplying(root / "bad", 2, broken=True), MODEL)
        connected.wait_until_served(MODEL)
        yield connected


@pytest.fixture(autouse=True)
def _begin_anew(client: Any) -> None:
    client.models.promote(MODEL, 1)


def call(client: Any, value: float) -> None:
    """One user's call; what it comes to, the split counts."""
    with suppress(grpc.RpcError):
        client.predict(MODEL, {"x": np.full((1, 3), value, np.float32)}, bypass_cache=True)


def until(client: Any, look: Callable[[], Status], value: float = 1.0) -> Status:
    """Users call until there is something to do."""
    end = time.monotonic() + WAIT_S
    while (found := look()).decision is Decision.WAIT:
        assert time.monotonic() < end, found.reason
        for _ in range(20):
            call(client, value)
    return found


@contextmanager
def users(client: Any) -> Iterator[None]:
    """Somebody calls as long as the block lasts. After WAIT_S the split is ended, which ends whoever watches it."""
    over, end = threading.Event(), time.monotonic() + WAIT_S

    def ask() -> None:
        while not over.is_set() and time.monotonic() < end:
            call(client, 1.0)
        if not over.is_set():
            client.models.clear_traffic(MODEL)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield
        finally:
            over.set()
        asking.result()


def told(runner: CliRunner, *arguments: str, status: int = 0) -> str:
    result = runner.invoke(app, ["rollout", *arguments])
    assert result.exit_code == status, result.output + str(result.exception)
    return " ".join(result.output.split())


def test_a_good_version_is_tried_promoted_and_taken_back(client: Any, hone: CliRunner) -> None:
    plan = told(hone, "start", GOOD, "--share", "50%", "--max-p99-ratio", "1000", "--min-calls", "5")
    for words in ("stable", "advised", "50.0%", "max_error_rate 0.01", "max_p99_ratio 1000"):
        assert words in plan
    with users(client):
        shown = told(hone, "show", GOOD, "--watch", "--interval", "0.1", "--enough", "20", "--html", "page.html")
    for words in ("Predicted and live", "p50, times as fast as the control", "2.00x", "promote: it has answered", "written to page.html"):
        assert words in shown
    page = Path("page.html").read_text()
    assert '<section id="live">' in page
    assert "promote: it has answered" in page
    assert "is version 2 now" in told(hone, "promote", GOOD)
    assert client.models.get(MODEL).version == 2
    assert "done: advisable:stable is version 2 now" in told(hone, "show", GOOD)
    assert "is version 1 again" in told(hone, "back", GOOD)
    assert client.models.get(MODEL).version == 1


def test_a_bad_version_takes_itself_out(client: Any, hone: CliRunner) -> None:
    client.rollouts.start(BAD, share=0.5)
    found = until(client, lambda: client.rollouts.status(BAD), value=9.0)
    assert found.decision is Decision.ROLL_BACK
    shown = told(hone, "show", BAD, status=1)
    assert "roll back" in shown
    client.rollouts.back(BAD)
    assert not client.models.traffic(MODEL).arms
    assert client.models.get(MODEL).version == 1


async def test_the_asynchronous_client_says_the_same(client: Any, suite: Suite) -> None:
    at = suite.addresses
    async with hone.aio.Client(optimization=at["optimization"], inference=at["inference"], cache=at["cache"]) as connected:
        made = await connected.rollouts.start(GOOD, shadow=1.0)
        assert made == client.models.traffic(MODEL)
        assert [arm.name for arm in made.arms] == ["stable"]
        assert until(client, lambda: client.rollouts.status(GOOD, enough_calls=20)).decision is Decision.SPLIT
        assert (await connected.rollouts.status(GOOD, enough_calls=20)).decision is Decision.SPLIT
        grown = await connected.rollouts.start(GOOD, share=0.2, shadow=1.0)
        assert grown.revision == made.revision + 1
        assert (await connected.rollouts.back(GOOD)).version == 1
        await connected.rollouts.start(GOOD, shadow=1.0)
        assert (await connected.rollouts.promote(GOOD)).version == 2
        assert (await connected.rollouts.status(GOOD)).decision is Decision.DONE
        assert (await connected.rollouts.back(GOOD)).version == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("start", GOOD, "--share", "much"), "--share: 'much' is no share"),
        (("start", GOOD, "--channel", "beta"), "hone promote advisable 1 --channel beta"),
        (("start", REJECTED), "is rejected and has published nothing"),
        (("start", ELSEWHERE), "advise again without `publish_as`"),
        (("show", GOOD), "start its rollout first"),
        (("promote", GOOD), "start its rollout first"),
        (("back", GOOD), "start its rollout first"),
    ],
)
def test_what_makes_no_sense_is_explained(client: Any, hone: CliRunner, arguments: tuple[str, ...], words: str) -> None:
    result = hone.invoke(app, ["rollout", *arguments])
    assert isinstance(result.exception, ValueError)
    assert words in str(result.exception)
