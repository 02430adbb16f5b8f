"""What a version did, as Prometheus reads it: from the real server after real calls, and from one version by itself."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from hone.inference.v1 import inference_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.chassis.faults import DeadlineMissed, InvalidField, Overloaded, Unavailable
from services.chassis.histogram import Histogram
from services.inference.metrics import Metrics
from services.inference.statistics import Statistics
from services.inference.variants import Ending, Variants, ending
from services.repository.store import Repository
from tests.inference.conftest import Door, opened, seal
from tests.models import minilm_signature, shallow_minilm


def scraped(registry: CollectorRegistry, **labels: str) -> dict[str, float]:
    """Samples that have these labels, as `name{other=label}` of the text that Prometheus gets."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            if labels.items() <= sample.labels.items():
                rest = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()) if name not in labels)
                found[f"{sample.name}{{{rest}}}" if rest else sample.name] = sample.value
    return found


class Still:
    """A version that does nothing."""

    queued_rows, queued_tokens, live_instances = 3, 40, 2

    def __init__(self) -> None:
        self.statistics = Statistics()
        self.variants = Variants(clock=lambda: 0.0)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


class TestHistogram:
    @given(st.lists(st.floats(0, 10), max_size=50))
    def test_each_value_is_counted_once_under_the_first_bound_that_holds_it(self, values: list[float]) -> None:
        histogram = Histogram((0.5, 1, 4))
        for value in values:
            histogram.observe(value)
        assert histogram.counts == [
            sum(value <= 0.5 for value in values),
            sum(0.5 < value <= 1 for value in values),
            sum(1 < value <= 4 for value in values),
            sum(value > 4 for value in values),
        ]
        assert histogram.sum == pytest.approx(sum(values))

    def test_prometheus_gets_running_totals(self, registry: CollectorRegistry) -> None:
        metrics = Metrics(registry).of("m", 1, Still())
        for value in (1, 2, 2, 1000):
            metrics.batch_rows.observe(value)
        found = scraped(registry, model="m", version="1")
        buckets = {bound: found[f"hone_batch_rows_bucket{{le={bound}}}"] for bound in ("1.0", "2.0", "4.0", "128.0", "+Inf")}
        assert buckets == {"1.0": 1, "2.0": 3, "4.0": 3, "128.0": 3, "+Inf": 4}
        assert (found["hone_batch_rows_count"], found["hone_batch_rows_sum"]) == (4, 1005)


class TestVersions:
    def test_a_version_shows_all_its_series_from_the_start(self, registry: CollectorRegistry) -> None:
        Metrics(registry).of("m", 1, Still())
        found = scraped(registry, model="m", version="1")
        assert found["hone_queued_rows"] == 3
        assert found["hone_queued_tokens"] == 40
        assert found["hone_live_instances"] == 2
        assert found["hone_batches_total{reason=full}"] == 0
        assert found["hone_instances_lost_total{reason=hung}"] == 0

    def test_an_unloaded_versions_series_are_gone_and_no_other(self, registry: CollectorRegistry) -> None:
        metrics = Metrics(registry)
        before = generate_latest(registry)
        kept, gone = metrics.of("m", 1, Still()), metrics.of("m", 2, Still())
        gone.forget()
        assert not scraped(registry, version="2")
        assert scraped(registry, version="1")
        kept.forget()
        assert generate_latest(registry) == before

    def test_one_that_is_forgotten_late_takes_nothing_from_its_successor(self, registry: CollectorRegistry) -> None:
        metrics = Metrics(registry)
        first = metrics.of("m", 1, Still())
        metrics.of("m", 1, Still())
        first.forget()
        assert scraped(registry, model="m", version="1")

    def test_loads_are_counted_by_how_they_ended(self, registry: CollectorRegistry) -> None:
        metrics = Metrics(registry)
        with metrics.loading():
            pass
        with pytest.raises(OSError, match="no file"), metrics.loading():
            raise OSError("no file")
        assert [scraped(registry)[f"hone_loads_total{{result={result}}}"] for result in ("ready", "failed")] == [1, 1]
        assert scraped(registry)["hone_load_seconds_count"] == 2


class TestVariants:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (Overloaded("full", 1), Ending.OVERLOADED),
            (DeadlineMissed("late"), Ending.LATE),
            (TimeoutError(), Ending.LATE),
            (Unavailable("draining"), Ending.UNAVAILABLE),
            (InvalidField("x", "bad"), Ending.INVALID),
            (asyncio.CancelledError(), Ending.CANCELLED),
            (ValueError("ours"), Ending.FAILED),
        ],
    )
    def test_a_call_that_raises_is_counted_by_what_it_raised(self, error: BaseException, expected: Ending) -> None:
        assert ending(error) is expected
        variants = Variants(clock=lambda: 0.0)
        running = []
        with pytest.raises(type(error)), variants.running_call("stable", deadline=1.0):  # noqa: PT012  (what a call sees while it runs)
            running.append(variants.running)
            raise error
        assert [*running, variants.running] == [1, 0]
        assert {name: count for name, count in variants.counts["stable"].calls.items() if count} == {expected: 1}

    def test_a_caller_whose_time_was_up_is_late_and_not_gone(self) -> None:
        variants = Variants(clock=lambda: 1.0)
        with pytest.raises(asyncio.CancelledError), variants.running_call("stable", deadline=1.0):
            raise asyncio.CancelledError
        assert variants.counts["stable"].calls[Ending.LATE] == 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM's first layer."""
    return shallow_minilm(tmp_path_factory.mktemp("model") / "one", 1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    repository = Repository(tmp_path_factory.mktemp("metered"))
    seal(repository, model, "m", minilm_signature(), "stable")
    async with opened(repository, max_rows=8) as opened_door:
        yield opened_door


@pytest.mark.asyncio(loop_scope="module")
class TestServer:
    async def test_a_call_is_seen_in_every_phase(self, door: Door) -> None:
        for _ in range(2):
            await door.stub.Embed(pb.EmbedRequest(model="m", texts=["seen", "in every phase"]))
        found = scraped(door.server.registry, model="m", version="1")
        for phase, count in {"tokenization": 2, "lookup": 2, "queue": 2, "compute": 1}.items():
            assert found[f"hone_{phase}_seconds_count"] == count, phase
        assert found["hone_requests_total{ending=answered,variant=stable}"] == 2
        assert found["hone_rows_total{variant=stable}"] == 4
        assert found["hone_cached_rows_total"] == 2
        assert found["hone_request_seconds_count{variant=stable}"] == 2
        assert found["hone_batch_rows_count"] == 1
        assert found["hone_predicted_over_actual_count"] == 1
        assert sum(found[name] for name in found if name.startswith("hone_batches_total")) == 1
        assert 0 < found["hone_real_tokens_total"] <= found["hone_padded_tokens_total"]
        assert found["hone_running_requests"] == 0

    async def test_no_caller_can_make_a_series(self, door: Door) -> None:
        before = [name for name in scraped(door.server.registry) if name.startswith("hone_")]
        for number in range(20):
            for model in (f"nobody{number}", f"m@{number + 2}", f"m:channel{number}", f"m\n{number}"):
                with pytest.raises(grpc.aio.AioRpcError):
                    await door.stub.Embed(pb.EmbedRequest(model=model, texts=["x"]))
        assert [name for name in scraped(door.server.registry) if name.startswith("hone_")] == before

    async def test_statistics_tell_what_prometheus_is_told(self, door: Door) -> None:
        await door.stub.Embed(pb.EmbedRequest(model="m", texts=["told twice"]))
        await door.stub.Embed(pb.EmbedRequest(model="m@1", texts=["by its number", "told twice"]))
        response = await door.stub.GetStatistics(pb.GetStatisticsRequest())
        variants = {each.variant: each for each in response.models[0].variants}
        assert set(variants) == {"", "stable"}
        named = variants[""]
        assert (named.answered_requests, named.rows, named.cached_rows, sum(named.latencies.counts)) == (1, 2, 1, 1)
        assert len(named.latencies.counts) == len(named.latencies.upper_bounds_seconds) + 1
        found = scraped(door.server.registry, model="m", version="1")
        assert found["hone_requests_total{ending=answered,variant=stable}"] == variants["stable"].answered_requests
        assert found["hone_request_seconds_sum{variant=stable}"] == variants["stable"].latencies.sum_seconds
        assert response.resident_bytes > 1 << 20


async def test_an_unloaded_versions_series_leave_the_server(model: Path, repository: Repository) -> None:
    seal(repository, model, "m", minilm_signature(), "stable")
    seal(repository, model, "m", minilm_signature())
    async with opened(repository) as door:
        await door.stub.LoadModel(pb.LoadModelRequest(model="m@2"))
        await door.stub.Embed(pb.EmbedRequest(model="m@2", texts=["x"]))
        assert scraped(door.server.registry, version="2")
        await door.stub.UnloadModel(pb.UnloadModelRequest(model="m@2"))
        await door.models.close()
        assert not scraped(door.server.registry, version="2")
