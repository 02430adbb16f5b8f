"""`hone top`: rates between two looks at each replica, by hand-made counters and against a hand-written service."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hone.cli import app
from hone.cli.show import console
from hone.cli.top import Fleet, quantile
from hone.inference.v1 import inference_pb2 as pb
from hone.inference.v1 import inference_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

BOUNDS = (0.001, 0.01, 0.1)


def variant(name: str = "stable", counts: tuple[int, ...] = (0, 0, 0, 0), **fields: int) -> pb.VariantStatistics:
    histogram = pb.LatencyHistogram(upper_bounds_seconds=BOUNDS, counts=counts)
    return pb.VariantStatistics(variant=name, answered_requests=sum(counts), latencies=histogram, **fields)


def told(replica: str, *models: pb.ModelStatistics, cpu_seconds: float = 0) -> pb.GetStatisticsResponse:
    return pb.GetStatisticsResponse(replica=replica, models=models, cpu_seconds=cpu_seconds, resident_bytes=250_000_000)


def model(*variants: pb.VariantStatistics, version: int = 1, loaded_s: int = 1, **fields: int) -> pb.ModelStatistics:
    return pb.ModelStatistics(name="m", version=version, loaded=Timestamp(seconds=loaded_s), variants=variants, **fields)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def shown(*looks: list[pb.GetStatisticsResponse], seconds: float = 2.0) -> str:
    """What is printed after looks of these answers each."""
    clock, answers = Clock(), iter([answer for look in looks for answer in look])
    fleet = Fleet(lambda: next(answers), clock)
    for _ in looks:
        clock.now_s += seconds
        fleet.look()
    console = Console(width=200)
    with console.capture() as captured:
        console.print(fleet.tables())
    return captured.get()


def cells(text: str, start: str) -> list[str]:
    """Cells of the row that begins with `start`."""
    (line,) = [line for line in text.splitlines() if line.replace("│", " ").split()[:1] == [start]]
    return [cell.strip() for cell in line.strip()[1:-1].split("│")]


def alone(*models: pb.ModelStatistics, **fields: float) -> list[pb.GetStatisticsResponse]:
    """One replica's answers of one look."""
    return [told("here", *models, **fields)] * 3


def test_rates_and_quantiles_are_of_the_time_between_two_looks() -> None:
    before = model(variant(counts=(100, 0, 0, 0), rows=100), batches=50, batch_rows=100, real_tokens=900, padded_tokens=1000)
    after = model(
        variant(counts=(100, 40, 0, 0), rows=180, cached_rows=20, failed_requests=8, overloaded_requests=2, cancelled_requests=10),
        batches=60,
        batch_rows=160,
        real_tokens=1650,
        padded_tokens=2000,
        queued_rows=7,
    )
    text = shown(alone(before, cpu_seconds=1), alone(after, cpu_seconds=2))
    assert cells(text, "m@1") == ["m@1", "stable", "30.0", "40.0", "5.5", "9.9", "16.7%", "25%", "6.0", "25%", "7"]
    assert "CPU 50% of a core" in text
    assert "250.0 MB" in text


def test_each_variant_has_a_row_and_the_version_is_told_once() -> None:
    before = model(variant("a"), variant("b"))
    after = model(variant("a", (4, 0, 0, 0)), variant("b", (0, 0, 0, 2)), queued_rows=3)
    text = shown(alone(before), alone(after))
    assert cells(text, "m@1")[:3] == ["m@1", "a", "2.0"]
    assert cells(text, "b") == ["", "b", "1.0", "0.0", ">100", ">100", "0.0%", "", "", "", ""]


def test_without_calls_there_is_nothing_to_say() -> None:
    quiet = model(variant(counts=(5, 0, 0, 0), rows=5))
    assert cells(shown(alone(quiet), alone(quiet)), "m@1") == ["m@1", "stable", *[""] * 8, "0"]


def test_a_version_that_came_in_between_counts_from_nothing() -> None:
    before = model(variant(counts=(500, 0, 0, 0)), loaded_s=1)
    after = model(variant(counts=(10, 0, 0, 0)), loaded_s=2)
    assert cells(shown(alone(before), alone(after)), "m@1")[2] == "5.0"


def test_every_replica_that_a_gateway_leads_to_is_asked() -> None:
    look = [told(name, model(variant())) for name in ("one", "two", "three", "one", "two")]
    text = shown(look, look)
    assert [name for name in ("one", "two", "three") if f"replica {name}" in text] == ["one", "two", "three"]


def test_a_replica_that_is_gone_is_forgotten_after_some_looks() -> None:
    both = [told("one"), told("two"), told("one"), told("two")]
    one = [told("one")] * 3
    assert "replica two" in shown(both, one)
    assert "replica two" not in shown(both, *[one] * 5)


def test_what_a_server_calls_itself_is_text() -> None:
    assert "replica [bold]x[/]" in shown([told("[bold]x[/]")] * 3)


@given(st.lists(st.integers(0, 20), min_size=4, max_size=4), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_of_its_value(counts: list[int], share: float) -> None:
    values = [index for index, count in enumerate(counts) for _ in range(count)]
    found = quantile(BOUNDS, counts, share)
    if not values:
        assert found is None
        return
    assert found is not None
    bucket = values[max(0, math.ceil(round(share * len(values), 9)) - 1)]
    lower, upper = (0, *BOUNDS)[bucket], (*BOUNDS, math.inf)[bucket]
    assert lower <= found <= upper


@pytest.fixture
def service() -> Iterator[str]:
    """A replica that answered twenty more calls each time that it is asked."""

    class Replica(inference_pb2_grpc.InferenceServiceServicer):
        calls = 0

        def GetStatistics(self, request: pb.GetStatisticsRequest, context: Any) -> pb.GetStatisticsResponse:  # noqa: N802
            self.calls += 20
            return told("here", model(variant(counts=(self.calls, 0, 0, 0))))

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(Replica(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def test_once_prints_one_table_and_ends(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 200)  # a narrow terminal shortens figures
    done = CliRunner().invoke(app, ["--inference", service, "top", "--once", "--interval", "0.05"])
    assert done.exit_code == 0, done.output
    assert float(cells(done.output, "m@1")[2]) > 0
    assert done.output.count("replica here") == 1
