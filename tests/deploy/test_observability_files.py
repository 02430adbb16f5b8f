"""Rules and dashboard: every metric and label in them is told by servers that have answered calls, so that they cannot rot."""

import asyncio
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import yaml
from hone.inference.v1 import inference_pb2 as pb
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.cache.leases import LocalLeases
from services.cache.memory import MemoryStore
from services.cache.metered import LEASE_COUNTERS, MeteredStore, StatsCollector
from services.cache.servicer import CacheServicer
from services.cache.settings import CacheSettings
from services.chassis.errors import ErrorTable
from services.chassis.server import Server
from services.inference.traffic.metrics import TrafficCollector
from services.repository.store import Repository
from tests.compose.compose_project import ROOT, free_port
from tests.deploy import promql
from tests.inference.conftest import PLAIN, opened, plain_model, seal

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
ADDED = {"job", "instance"}  # by the scrape itself
OF_PROMETHEUS = {"up": {"job", "instance"}}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "hone.json").read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    """Of rules and panels, and what the dashboard's variables ask for."""
    yield from (rule["expr"] for rule in rules())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])
    for variable in dashboard()["templating"]["list"]:
        name, label = variable["definition"].removeprefix("label_values(").removesuffix(")").split(", ")
        yield f'{name}{{{label}=""}}'


def labels_by_name(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Every sample that a scrape may hold, and its labels; of a family without samples only the names are known."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for suffix in SUFFIXES.get(family.type, ("",)):
            found.setdefault(family.name + suffix, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@dataclass(frozen=True)
class Running:
    """Servers that have answered calls: their metrics ports by job, and what a scrape of them knows."""

    ports: Mapping[str, int]
    labels: Mapping[str, set[str]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("observed")
    repository = Repository(folder / "repository")
    seal(repository, plain_model(folder / "plain"), "plain", PLAIN, "stable")
    ports = {"inference": free_port(), "cache": free_port()}
    async with AsyncExitStack() as stack:
        door = await stack.enter_async_context(opened(repository, metrics_port=ports["inference"]))
        door.server.registry.register(TrafficCollector(door.models.splits))
        settings = CacheSettings(port=0, metrics_port=ports["cache"])
        cache = Server(settings, ErrorTable())
        store = MeteredStore(MemoryStore(1 << 20, time.monotonic), cache.registry)
        leases = CacheServicer(store, settings, LocalLeases(time.monotonic, settings.max_leases))
        cache.registry.register(StatsCollector(leases.stats, LEASE_COUNTERS, {}))
        await stack.enter_async_context(cache.running([]))
        await store.get("n", [b"key"])
        row = pb.Tensor(datatype="FP32", shape=[1, 3], data=np.ones((1, 3), "<f4").tobytes())
        for _ in range(3):
            await door.stub.Predict(pb.PredictRequest(model="plain", inputs=[pb.NamedTensor(name="x", tensor=row)]))
        yield Running(ports, {**labels_by_name(cache.registry), **labels_by_name(door.server.registry)})


@pytest.mark.asyncio(loop_scope="module")
async def test_every_metric_that_is_named_is_told(running: Running) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    named = {name for expression in expressions() for name in promql.metrics(expression)}
    assert named - recorded - set(running.labels) - set(OF_PROMETHEUS) == set()
    assert recorded & named, "nothing uses what the rules record"


@pytest.mark.asyncio(loop_scope="module")
async def test_every_label_that_is_named_is_told(running: Running) -> None:
    unknown = [
        (name, label)
        for expression in expressions()
        for name, label in promql.matched(expression)
        if running.labels.get(name) and label not in running.labels[name] | ADDED
    ]
    assert unknown == []
    for expression in expressions():
        told = [running.labels.get(name) for name in promql.metrics(expression)]
        if all(told):  # of what a rule records, and of a family that has no sample yet, the labels are not known here
            assert promql.grouped(expression) <= ADDED.union(*told), expression


def test_the_names_in_an_expression_are_found() -> None:
    expression = (
        'sum by (model, le) (rate(a_total{x=~"b",y!="c_d"}[5m])) / on (job) c:d:e > bool 0.5e3 or vector(up) unless absent(f{z="1"})'
    )
    assert promql.metrics(expression) == {"a_total", "c:d:e", "up", "f"}
    assert set(promql.matched(expression)) == {("a_total", "x"), ("a_total", "y"), ("f", "z")}
    assert promql.grouped(expression) == {"model", "le", "job"}


def test_every_alert_says_how_bad_it_is_and_what_it_means() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert all(rule["labels"]["severity"] in ("page", "warn") and rule["annotations"]["summary"] for rule in alerts)
    assert len({rule["alert"] for rule in alerts}) == len(alerts)


def test_the_dashboards_panels_lie_beside_each_other() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def test_the_dashboard_asks_the_data_source_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    asked = {each["datasource"]["uid"] for panel in panels() for each in (panel, *panel["targets"])}
    assert asked == {source["uid"]}
    variables = {f"${variable['name']}" for variable in dashboard()["templating"]["list"]}
    text = json.dumps([panel["targets"] for panel in panels()])
    assert all(variable in text for variable in variables)


def test_prometheus_scrapes_the_ports_that_compose_sets() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]:
        (found,) = job["dns_sd_configs"]
        assert found["names"] == [job["job_name"]]
        told = services[job["job_name"]].get("environment", {})
        expected = told.get(f"HONE_{job['job_name'].upper()}_METRICS_PORT", 7080)  # the gateway's own, in haproxy.cfg
        assert found["port"] == expected
    assert "bind :7080" in (ROOT / "deploy" / "haproxy.cfg").read_text()


def test_compose_mounts_files_that_exist() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["observability"]
        for volume in services[name]["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), volume


needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)")


@needs_promtool
@pytest.mark.parametrize("command", [("config", "--syntax-only", "prometheus.yml"), ("rules", "rules.yml")])
def test_promtool_finds_no_fault(command: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", "check", *command], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    for file in (PROMETHEUS / "rules.yml", Path(__file__).with_name("alerts.yml")):
        shutil.copy(file, tmp_path)
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class RealPrometheus:
    port: int

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}", timeout=5) as response:
            return json.load(response)["data"]

    async def until(self, path: str, holds: Any, within_s: float = 60) -> Any:
        """Asks until the answer holds: another process tells nothing when it changes."""
        end = time.monotonic() + within_s
        while True:
            try:
                answer = await asyncio.to_thread(self.ask, path)
                if holds(answer):
                    return answer
            except OSError as error:  # it has not begun to listen
                answer = error
            assert time.monotonic() < end, answer
            await asyncio.sleep(0.1)


@pytest_asyncio.fixture(loop_scope="module")
async def prometheus(running: Running, tmp_path: Path) -> AsyncIterator[RealPrometheus]:
    """A real Prometheus with the rules of the repository, which scrapes the servers of this process."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(PROMETHEUS / "rules.yml")],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in running.ports.items()
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    arguments = (
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec("prometheus", *arguments, stdout=log, stderr=log)
    try:
        yield RealPrometheus(port)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


@needs_prometheus
@pytest.mark.asyncio(loop_scope="module")
async def test_a_real_prometheus_scrapes_the_servers_and_evaluates_every_rule(running: Running, prometheus: RealPrometheus) -> None:
    targets = await prometheus.until(
        "targets", lambda data: len(data["activeTargets"]) == 2 and all(each["health"] == "up" for each in data["activeTargets"])
    )
    assert {each["labels"]["job"] for each in targets["activeTargets"]} == set(running.ports)
    groups = await prometheus.until(
        "rules", lambda data: all(rule["health"] == "ok" for group in data["groups"] for rule in group["rules"])
    )
    assert sum(len(group["rules"]) for group in groups["groups"]) == len(rules())
    ready = await prometheus.until("query?query=hone_ready", lambda data: len(data["result"]) == 2)
    assert {each["metric"]["grpc_service"] for each in ready["result"]} >= {"hone.inference.v1.InferenceService"}
    counted = await prometheus.until('query?query=hone_requests_total%7Bending="answered"%7D', lambda data: data["result"])
    assert counted["result"][0]["value"][1] == "3"
