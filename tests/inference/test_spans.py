"""What a traced call tells of itself: where its time went, and which batch it shared with whom."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from hone.aio import CacheClient
from hone.cache.v1 import cache_pb2_grpc
from hone.inference.v1 import inference_pb2 as pb
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from services.cache.leases import LocalLeases
from services.cache.memory import MemoryStore
from services.cache.servicer import CacheServicer
from services.cache.settings import CacheSettings
from services.chassis.errors import ErrorTable
from services.chassis.server import Server
from services.chassis.settings import ServerSettings
from services.inference.shared_answers import SharedAnswers
from services.repository.store import Repository
from tests.chassis.collector import Collector, attributes, collecting
from tests.inference.conftest import opened, seal
from tests.models import minilm_signature, shallow_minilm

CALL = "hone.inference.v1.InferenceService/Embed"


def header(number: int, *, sampled: bool = True) -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{number:032x}-{1:016x}-{int(sampled):02x}"),)


async def traced(repository: Repository, calls: Sequence[tuple[list[str], tuple[tuple[str, str], ...]]], **settings: object) -> Collector:
    """What a collector gets when a server answers these calls at once."""
    async with collecting() as collector, opened(repository, otlp_endpoint=collector.address, **settings) as door:
        await asyncio.gather(*(door.stub.Embed(pb.EmbedRequest(model="m", texts=texts), metadata=metadata) for texts, metadata in calls))
    return collector


def within(inner: Span, outer: Span) -> bool:
    slack_ns = 2_000_000  # two clocks are read one after the other
    return (
        outer.start_time_unix_nano - slack_ns <= inner.start_time_unix_nano
        and inner.end_time_unix_nano <= outer.end_time_unix_nano + slack_ns
    )


@pytest.fixture(scope="module")
def with_a_model(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository with MiniLM's first layer. Read only."""
    root = tmp_path_factory.mktemp("spans")
    repository = Repository(root / "repository")
    seal(repository, shallow_minilm(root / "one", 1), "m", minilm_signature(), "stable")
    return repository


async def test_a_call_tells_where_its_time_went(with_a_model: Repository) -> None:
    collector = await traced(with_a_model, [(["some text"], header(7))])
    call = collector.the(CALL)
    phases = [collector.the(name) for name in ("tokenize", "cache lookup", "queue", "compute")]
    for phase in phases:
        assert (phase.trace_id, phase.parent_span_id) == (call.trace_id, call.span_id)
        assert within(phase, call)
    assert [phase.end_time_unix_nano for phase in phases] == sorted(phase.end_time_unix_nano for phase in phases)
    told = attributes(call)
    assert (told["hone.model"], told["hone.version"], told["hone.variant"]) == ("m", 1, "stable")


async def test_a_batch_is_linked_to_every_call_that_it_answers(with_a_model: Repository) -> None:
    calls = [([f"text number {number}", f"another {number}"], header(number)) for number in range(1, 6)]
    collector = await traced(with_a_model, calls)
    servers = {(span.trace_id, span.span_id) for span in collector.named(CALL)}
    batches = {span.span_id: span for span in collector.named("batch")}
    assert {(link.trace_id, link.span_id) for batch in batches.values() for link in batch.links} == servers
    for compute in collector.named("compute"):
        (link,) = compute.links
        batch = batches[link.span_id]
        assert (compute.trace_id, compute.parent_span_id) in {(each.trace_id, each.span_id) for each in batch.links}
        assert attributes(compute)["hone.batch.rows"] == attributes(batch)["hone.batch.rows"]


async def test_calls_that_are_not_sampled_leave_nothing(with_a_model: Repository) -> None:
    collector = await traced(with_a_model, [(["unseen"], header(1, sampled=False)), (["seen"], header(2))])
    assert {span.trace_id.hex() for span in collector.spans} == {f"{2:032x}"}


async def test_a_remembered_answer_has_no_queue_and_no_batch(with_a_model: Repository) -> None:
    async with collecting() as collector, opened(with_a_model, otlp_endpoint=collector.address) as door:
        request = pb.EmbedRequest(model="m", texts=["asked twice"])
        await door.stub.Embed(request, metadata=header(1, sampled=False))
        await door.stub.Embed(request, metadata=header(2))
    assert {span.name for span in collector.spans} == {CALL, "tokenize", "cache lookup"}


class HeldStore(MemoryStore):
    """Answers the first look-up once `gate` is open."""

    def __init__(self) -> None:
        super().__init__(1 << 20, time.monotonic)
        self.asked, self.gate = asyncio.Event(), asyncio.Event()

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        self.asked.set()
        await self.gate.wait()
        return await super().get(namespace, keys)


async def test_a_lookup_in_the_cache_service_is_part_of_the_trace_of_the_call_that_asks() -> None:
    """Also where one task looks up for several calls in turn: the second may not be told as the first one's doing."""
    store = HeldStore()
    async with AsyncExitStack() as stack:
        collector = await stack.enter_async_context(collecting())
        cache = Server(CacheSettings(port=0, otlp_endpoint=collector.address), ErrorTable())
        door = CacheServicer(store, CacheSettings(port=0), LocalLeases(time.monotonic, 1))
        cache_pb2_grpc.add_CacheServiceServicer_to_server(door, cache.grpc)
        await stack.enter_async_context(cache.running([]))
        front = Server(ServerSettings(otlp_endpoint=collector.address), ErrorTable())
        connection = grpc.aio.insecure_channel(f"127.0.0.1:{cache.port}", interceptors=front.client_interceptors)
        client = CacheClient("", connection=await stack.enter_async_context(connection))
        shared = SharedAnswers(client, timeout_s=30, ttl_s=1)
        stack.push_async_callback(shared.close)

        arrived = asyncio.Semaphore(0)

        async def ask(request: bytes, context: Any) -> bytes:
            arrived.release()
            await shared.get("answers", [request])
            return b""

        handlers = {"Ask": grpc.unary_unary_rpc_method_handler(ask)}
        front.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Front", handlers),))
        await stack.enter_async_context(front.running([]))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{front.port}"))
        call = channel.unary_unary("/test.Front/Ask")
        first = asyncio.ensure_future(call(b"1", metadata=header(1)))
        await store.asked.wait()
        second = asyncio.ensure_future(call(b"2", metadata=header(2)))
        for _ in range(2):
            await arrived.acquire()
        store.gate.set()
        await asyncio.gather(first, second)
    asked = collector.named("hone.cache.v1.CacheService/Get")
    sent = {span.span_id: span for span in asked if span.kind == Span.SPAN_KIND_CLIENT}
    answered = [span for span in asked if span.kind == Span.SPAN_KIND_SERVER]
    assert {span.trace_id.hex() for span in answered} == {f"{1:032x}", f"{2:032x}"}
    for span in answered:
        assert sent[span.parent_span_id].trace_id == span.trace_id
        assert attributes(sent[span.parent_span_id])["rpc.grpc.status_code"] == 0
