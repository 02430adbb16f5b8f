"""Profile `observability`: Prometheus finds every replica of every service by itself, and its rules evaluate."""

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compose.compose_project import ComposeProject, eventually, free_port

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

BUILD_TIMEOUT_S = 800  # without a cache of layers it installs torch twice
REPLICAS = 2
# Grafana is started by nobody here: what it shows is checked against a scrape by tests/deploy.
SERVICES = ("gateway", "optimization", "inference", "cache", "prometheus")


class Observed:
    """The suite, and what its Prometheus tells."""

    def __init__(self, project: ComposeProject, port: int) -> None:
        self.project = project
        self._port = port

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/{path}", timeout=10) as response:
            return json.load(response)["data"]

    def health(self) -> dict[str, list[str]]:
        """Of each job's targets."""
        found: dict[str, list[str]] = {}
        for target in self.ask("targets?state=active")["activeTargets"]:
            found.setdefault(target["labels"]["job"], []).append(target["health"])
        return found

    def value(self, query: str) -> float | None:
        result = self.ask(f"query?query={urllib.parse.quote(query)}")["result"]
        return float(result[0]["value"][1]) if result else None


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    port = free_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HONE_PROMETHEUS_PORT", str(port))
        environment.setenv("COMPOSE_PROFILES", "observability")
        project = ComposeProject("hone-observability-test", "compose.yaml", "tests/compose/quick.yaml")
    try:
        project.run("build", *SERVICES[1:4], timeout_s=BUILD_TIMEOUT_S)
        project.up("--scale", f"inference={REPLICAS}", *SERVICES)
        yield Observed(project, port)
    finally:
        project.remove()


def test_every_replica_of_every_service_is_scraped(observed: Observed) -> None:
    expected = {"gateway": ["up"], "optimization": ["up"], "inference": ["up"] * REPLICAS, "cache": ["up"]}
    assert eventually(lambda: observed.health() == expected, within_s=60), observed.health()


def test_every_rule_evaluates(observed: Observed) -> None:
    def healths() -> set[str]:
        return {rule["health"] for group in observed.ask("rules")["groups"] for rule in group["rules"]}

    assert eventually(lambda: healths() == {"ok"}, within_s=60), healths()
    recorded = 'hone:grpc_failed:ratio5m{job="inference"}'  # health probes are calls, and they succeed
    assert eventually(lambda: observed.value(recorded) is not None, within_s=90)


def test_what_is_ready_is_told(observed: Observed) -> None:
    ready = 'sum(hone_ready{grpc_service="hone.inference.v1.InferenceService"})'
    assert eventually(lambda: observed.value(ready) == REPLICAS, within_s=30), observed.value(ready)


def test_a_replica_that_is_added_is_found(observed: Observed) -> None:
    observed.project.up("--scale", f"inference={REPLICAS + 1}", *SERVICES)
    assert eventually(lambda: observed.health().get("inference") == ["up"] * (REPLICAS + 1), within_s=60), observed.health()


def test_prometheus_is_published_on_loopback_alone(observed: Observed) -> None:
    published = observed.project.published()
    assert set(published) == {"gateway", "prometheus"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
