"""Traces: the caller's is continued, passed on, and sent; a collector that fails harms nobody."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from services.chassis import faults, tracing
from services.chassis.otlp import OutgoingCalls
from tests.chassis.collector import attributes, collecting

Serve = Callable[..., AbstractAsyncContextManager[Any]]

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


async def echo(request: bytes, context: Any) -> bytes:
    with tracing.span("inner", {"hone.rows": 3}):
        tracing.note({"hone.model": "m"})
        return request


async def told(request: bytes, context: Any) -> bytes:
    """The traceparent that the call came with."""
    return dict(context.invocation_metadata()).get("traceparent", "").encode()


async def test_a_call_is_a_span_of_its_callers_trace(serve: Serve) -> None:
    async with collecting() as collector, serve(Echo=echo, settings={"otlp_endpoint": collector.address}) as served:
        await served.call("Echo", b"a", metadata=(("traceparent", SAMPLED),))
    call, inner = collector.the("test.Service/Echo"), collector.the("inner")
    assert (call.trace_id.hex(), call.parent_span_id.hex(), call.kind) == (TRACE, PARENT, Span.SPAN_KIND_SERVER)
    expected = {"rpc.system": "grpc", "rpc.service": "test.Service", "rpc.method": "Echo", "rpc.grpc.status_code": 0}
    assert attributes(call) == expected
    assert (inner.trace_id, inner.parent_span_id) == (call.trace_id, call.span_id)
    assert attributes(inner) == {"hone.rows": 3, "hone.model": "m"}
    assert call.start_time_unix_nano <= inner.start_time_unix_nano <= inner.end_time_unix_nano <= call.end_time_unix_nano
    assert collector.services == {"hone"}


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        (faults.NotFound("no model"), 5, Status.STATUS_CODE_UNSET),
        (faults.Unavailable("stopping"), 14, Status.STATUS_CODE_ERROR),
        (RuntimeError("secret"), 13, Status.STATUS_CODE_ERROR),
    ],
)
async def test_a_failed_call_tells_its_code_and_no_text(serve: Serve, fault: Exception, code: int, status: int) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        with tracing.span("inner"):
            raise fault

    async with collecting() as collector, serve(Fail=fail, settings={"otlp_endpoint": collector.address}) as served:
        with pytest.raises(grpc.aio.AioRpcError):
            await served.call("Fail")
    call, inner = collector.the("test.Service/Fail"), collector.the("inner")
    assert (attributes(call)["rpc.grpc.status_code"], call.status.code) == (code, status)
    assert (inner.status.code, inner.status.message) == (Status.STATUS_CODE_ERROR, type(fault).__name__)
    assert not any(b"secret" in span.SerializeToString() for span in collector.spans)


async def test_a_caller_that_goes_is_told_as_cancelled(serve: Serve) -> None:
    entered, ended = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    async with collecting() as collector, serve(Wait=wait, settings={"otlp_endpoint": collector.address}) as served:
        call = asyncio.ensure_future(served.call("Wait"))
        await entered.wait()
        call.cancel()
        await asyncio.wait_for(ended.wait(), 10)
    assert attributes(collector.the("test.Service/Wait"))["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]


async def test_streams_are_spans_too(serve: Serve) -> None:
    async def count(request: bytes, context: Any) -> Any:
        with tracing.span("inner"):
            yield b"1"
        yield b"2"

    async with collecting() as collector, serve(settings={"otlp_endpoint": collector.address}) as served:
        handler = grpc.method_handlers_generic_handler("test.Streams", {"Count": grpc.unary_stream_rpc_method_handler(count)})
        served.server.grpc.add_generic_rpc_handlers((handler,))
        assert [answer async for answer in served.channel.unary_stream("/test.Streams/Count")(b"")] == [b"1", b"2"]
    assert collector.the("inner").parent_span_id == collector.the("test.Streams/Count").span_id


async def test_probes_are_never_traced(serve: Serve) -> None:
    async with collecting() as collector, serve(Echo=echo, settings={"otlp_endpoint": collector.address}) as served:
        await health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest())
        await served.call("Echo")
    assert {span.name for span in collector.spans} == {"test.Service/Echo", "inner"}


@pytest.mark.parametrize(("share", "header", "recorded"), [(0, SAMPLED, True), (1, UNSAMPLED, False), (0, "", False), (1, "", True)])
async def test_the_caller_decides_what_is_sampled_and_the_share_where_it_did_not(
    serve: Serve, share: float, header: str, recorded: bool
) -> None:
    metadata = (("traceparent", header),) if header else ()
    async with collecting() as collector, serve(Echo=echo, settings={"otlp_endpoint": collector.address, "trace_share": share}) as served:
        await served.call("Echo", metadata=metadata)
    assert bool(collector.spans) is recorded


async def test_outgoing_calls_take_the_trace_along(serve: Serve) -> None:
    async with collecting() as collector, serve(Told=told) as below:
        target = f"127.0.0.1:{below.server.port}"
        async with grpc.aio.insecure_channel(target, interceptors=[OutgoingCalls()]) as channel:

            async def ask(request: bytes, context: Any) -> Any:
                return await channel.unary_unary("/test.Service/Told")(request)

            async with serve(Ask=ask, settings={"otlp_endpoint": collector.address}) as served:
                passed_on = await served.call("Ask", metadata=(("traceparent", SAMPLED),))
                unsampled = await served.call("Ask", metadata=(("traceparent", UNSAMPLED),))
            outside = await channel.unary_unary("/test.Service/Told")(b"")
    client = collector.the("test.Service/Told")
    assert client.kind == Span.SPAN_KIND_CLIENT
    assert client.parent_span_id == collector.the("test.Service/Ask").span_id
    assert passed_on.decode() == f"00-{TRACE}-{client.span_id.hex()}-01"
    assert unsampled.decode().split("-")[1::2] == [TRACE, "00"]
    assert outside == b""


async def test_a_header_that_is_none_begins_a_trace_of_its_own(serve: Serve) -> None:
    async with collecting() as collector, serve(Echo=echo, settings={"otlp_endpoint": collector.address}) as served:
        await served.call("Echo", metadata=(("traceparent", "00-xyz-1-01"),))
    assert collector.the("test.Service/Echo").parent_span_id == b""


async def test_a_collector_that_is_not_there_harms_no_call_and_no_stop(serve: Serve) -> None:
    async with asyncio.timeout(20):
        async with serve(Echo=echo, settings={"otlp_endpoint": "http://127.0.0.1:1"}) as served:
            assert await served.call("Echo", b"a") == b"a"


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    program = "import sys, services.inference.__main__, services.cache.__main__; print([m for m in sys.modules if 'opentelemetry' in m])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
