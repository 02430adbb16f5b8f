"""A goal's whole way, on a real model with one layer: searched, published, served, priced; and served by a service that dies."""

from collections.abc import Iterator

import psutil
import pytest
from hone.optimization.v1 import advisor_pb2, goals_pb2
from hone.optimization.v1 import jobs_pb2 as pb
from hone.repository.v1 import models_pb2
from hone.specs import goal, job_spec

from benchmarks.sentences import sentences
from services.optimization.folder import size_bytes
from tests.faults.test_optimization_faults import Service, serving
from tests.models import shallow_minilm

PRICES = goals_pb2.Economics(currency="EUR", instance_hour_price=0.5, peak_rows_per_second=500, hours=2, hourly_rate=80)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> int:
    return size_bytes(shallow_minilm(tmp_path_factory.mktemp("models") / "model")) // 2


@pytest.fixture(scope="module")
def service(half: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with serving(folder) as running:
        running.client.models.push(shallow_minilm(folder / "model"), "m", task=models_pb2.TASK_EMBEDDING)
        yield running


def spec(half: int, *, precisions_only: bool = False) -> pb.JobSpec:
    traffic = goals_pb2.Traffic(callers=2)
    wanted = goal("resource", max_size_bytes=half, precisions_only=precisions_only, economics=PRICES, traffic=traffic)
    return job_spec("m@1", evaluation=sentences(8, seed=5), min_fidelity=0.5, min_examples=1, goal=wanted, channels=["canary"])


def test_what_was_found_is_published_served_and_priced(service: Service, half: int) -> None:
    client = service.client
    job = client.jobs.wait(client.advisor.recommend(spec(half)).id)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    found = client.advisor.get(job.id)
    assert found.is_target_met
    assert found.chosen in found.front
    assert found.serving.speedup.low > 0
    assert not found.precisions
    assert f"m@{client.models.get('m:canary').version}" == job.published

    assert found.worth.currency == "EUR"
    dearer = goals_pb2.Economics()
    dearer.CopyFrom(PRICES)
    dearer.instance_hour_price *= 2
    again = client.advisor.worth(job.id, dearer)
    assert again.cost_per_million_rows_before.estimate == 2 * found.worth.cost_per_million_rows_before.estimate


def test_a_service_that_dies_ends_no_search(service: Service, half: int) -> None:
    """No target of this goal needs one: every precision is told, and the best is published with the default settings."""
    client = service.client
    job = client.advisor.recommend(spec(half, precisions_only=True))
    next(event for event in client.jobs.watch(job.id) if event.stage == "serving")
    (inference,) = (each for each in psutil.Process(service.process.pid).children(recursive=True) if "services.inference" in each.cmdline())
    inference.kill()
    ended = client.jobs.wait(job.id)
    assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
    found = client.advisor.get(job.id)
    assert found.serving_note.startswith("serving could not be tried: ")
    assert (found.HasField("serving"), found.HasField("worth"), list(found.missed)) == (False, False, [])
    assert found.is_target_met

    of = {each.precision: each for each in found.precisions}
    assert set(of) == set(advisor_pb2.Precision.values()) - {advisor_pb2.PRECISION_UNSPECIFIED}
    assert of[advisor_pb2.PRECISION_INT8].qualifies
    assert "max_size_bytes" in of[advisor_pb2.PRECISION_FP32].reason  # neither the original nor its exported form is so small
    assert all(each.HasField("speedup") or each.reason for each in of.values())
    assert all(each.size_ratio >= 2 for each in of.values() if each.qualifies)
