"""The whole suite in containers, through its one address, with the installed client: the loop, then one outage after another."""

import itertools
from collections.abc import Iterator

import grpc
import hone
import numpy as np
import pytest
from hone.optimization.v1 import jobs_pb2
from hone.specs import goal, job_spec

from benchmarks.sentences import sentences
from tests.compose.compose_project import ComposeProject, eventually
from tests.compose.load import under_load
from tests.models import minilm

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

BUILD_TIMEOUT_S = 800  # without a cache of layers it installs torch twice
TEXTS = ("the cat sat on the mat", "a kitten lay on the rug", "corporate tax law")
CANDIDATE = "minilm:canary"


@pytest.fixture(scope="module")
def project() -> Iterator[ComposeProject]:
    project = ComposeProject("hone-test", "compose.yaml", "tests/compose/quick.yaml")
    try:
        project.run("build", timeout_s=BUILD_TIMEOUT_S)
        project.up()
        yield project
    finally:
        project.remove()


@pytest.fixture(scope="module")
def client(project: ComposeProject) -> Iterator[hone.Client]:
    """A client through the gateway, with MiniLM served."""
    with hone.Client(project.address) as client:
        client.models.push(minilm(), "minilm", channels=["stable"])
        client.wait_until_served("minilm")
        yield client


@pytest.fixture(scope="module")
def job(client: hone.Client) -> jobs_pb2.Job:
    """A finished job that exported MiniLM to ONNX and published it as the canary."""
    texts = sentences(150, seed=7)
    spec = job_spec("minilm", recipes={"onnx": ["export_onnx"]}, evaluation=texts, min_gain=0, channels=["canary"])
    return client.jobs.wait(client.jobs.create(spec).id)


@pytest.fixture
def suite(project: ComposeProject, client: hone.Client) -> ComposeProject:
    """The suite with one replica of everything and no outage, whatever the test before left."""
    project.up()
    client.wait_until_served("minilm")
    return project


def replica_of(client: hone.Client, fresh: "itertools.count[int]") -> str:
    """Which replica computed an embedding of a text that nobody has asked for before."""
    return str(client.embed("minilm", [f"sentence number {next(fresh)}"], bypass_cache=True).served.replica)


def test_a_model_is_pushed_optimized_published_and_served(suite: ComposeProject, client: hone.Client, job: jobs_pb2.Job) -> None:
    assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.failure
    assert job.published == "minilm@2"
    client.wait_until_served(CANDIDATE)
    original, candidate = client.embed("minilm", TEXTS), client.embed(CANDIDATE, TEXTS)
    assert (original.served.version, candidate.served.version) == (1, 2)
    np.testing.assert_allclose(candidate.vectors, original.vectors, atol=1e-4)


def test_a_goal_is_met_with_serving_measured_inside_the_container(suite: ComposeProject, client: hone.Client) -> None:
    wanted = goal("throughput", min_speedup=1.02, max_loss=0.05)
    spec = job_spec("minilm@1", evaluation=sentences(150, seed=8), goal=wanted, publish_as="advised", budget_seconds=120)
    ended = client.jobs.wait(client.advisor.recommend(spec).id)
    found = client.advisor.get(ended.id)
    assert ended.published == "advised@1", (ended.failure, found)
    assert not found.serving_note
    assert found.serving.chosen.requests > 0


def test_every_replica_answers_when_inference_is_scaled(suite: ComposeProject, client: hone.Client) -> None:
    suite.up("--scale", "inference=3")
    fresh = itertools.count()
    names = {container[:12] for container in suite.containers("inference")}
    assert eventually(lambda: {replica_of(client, fresh) for _ in range(9)} == names, within_s=60)
    counted = {counters.replica: counters.models[0].requests for counters in (client.statistics("minilm") for _ in range(9))}
    assert set(counted) == names
    assert min(counted.values()) > 0


def test_a_stopped_cache_costs_no_call(suite: ComposeProject, client: hone.Client) -> None:
    text = "remembered before the outage"
    before = client.embed("minilm", [text])
    suite.run("stop", "cache")
    for number in range(20):
        client.embed("minilm", [f"during the outage {number}"], timeout=5)
    np.testing.assert_allclose(client.embed("minilm", [text], bypass_cache=True).vectors, before.vectors, atol=1e-5)


def test_a_killed_replica_costs_no_call_of_a_client_that_retries(suite: ComposeProject, client: hone.Client) -> None:
    suite.up("--scale", "inference=2")
    fresh = itertools.count(1000)
    assert eventually(lambda: len({replica_of(client, fresh) for _ in range(6)}) == 2, within_s=60)
    with under_load(lambda: replica_of(client, fresh)) as load:
        load.await_answers(40)
        killed = suite.containers("inference")[0]
        suite.signal(killed, "SIGKILL")
        load.await_answers(80)
    assert not load.failed
    assert killed[:12] in load.answered


def test_models_jobs_and_answers_survive_down_and_up(suite: ComposeProject, client: hone.Client, job: jobs_pb2.Job) -> None:
    text = "remembered across a restart"
    client.embed("minilm", [text])
    client.cache.put("test", {b"key": b"value"})
    suite.run("down")
    suite.up()
    client.wait_until_served("minilm")
    assert client.models.get(CANDIDATE).version == 2
    assert client.jobs.get(job.id).published == job.published
    assert client.cache.get("test", [b"key"]) == [b"value"]
    assert client.embed("minilm", [text]).served.cached_rows == 1


def test_every_container_ends_in_order_when_told_to(suite: ComposeProject) -> None:
    suite.run("stop")
    assert suite.exit_codes() == {"cache": {0}, "gateway": {0}, "inference": {0}, "optimization": {0}}


def test_only_the_gateway_is_reachable_from_outside(suite: ComposeProject) -> None:
    assert suite.published() == {"gateway": {f"{suite.address}->7000/tcp"}}


def test_no_service_may_write_outside_its_volumes(suite: ComposeProject) -> None:
    for service, folder in (("inference", "/var/lib/hone/repository"), ("cache", "/app"), ("optimization", "/app")):
        with pytest.raises(AssertionError, match="Read-only file system"):
            suite.run("exec", "-T", service, "python", "-c", f"open('{folder}/file', 'w')")


def test_an_unknown_model_is_told_apart_from_an_outage(suite: ComposeProject, client: hone.Client) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        client.embed("nobody", ["a"])
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
