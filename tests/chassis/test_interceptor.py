"""What every call gets: codes, metrics, logs and a deadline."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis import faults

Serve = Callable[..., AbstractAsyncContextManager[Any]]


async def echo(request: bytes, context: Any) -> bytes:
    return request


async def some_turns() -> None:
    """Lets a deadline that has passed strike."""
    for _ in range(5):
        await asyncio.sleep(0)


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def raising(error: Exception) -> Callable[[bytes, Any], Any]:
    async def behave(request: bytes, context: Any) -> bytes:
        raise error

    return behave


async def test_an_answer_passes_and_is_counted(serve: Serve) -> None:
    async with serve(Echo=echo) as served:
        assert await served.call("Echo", b"hello") == b"hello"
        assert await served.call("Echo", b"again") == b"again"
    labels = {"grpc_service": "test.Service", "grpc_method": "Echo"}
    assert served.metric("grpc_server_started_total", **labels) == 2
    assert served.metric("grpc_server_handled_total", grpc_code="OK", **labels) == 2
    assert served.metric("grpc_server_handling_seconds_count", **labels) == 2
    assert served.metric("grpc_server_in_flight") == 0


async def test_a_fault_becomes_its_status_and_is_counted(serve: Serve) -> None:
    async with serve(Fail=raising(faults.NotFound("no model x"))) as served:
        error = await refused(served.call("Fail"))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no model x")
    assert served.metric("grpc_server_handled_total", grpc_service="test.Service", grpc_method="Fail", grpc_code="NOT_FOUND") == 1


async def test_overload_carries_pushback(serve: Serve) -> None:
    async with serve(Fail=raising(faults.Overloaded("the queue is full", 0.25))) as served:
        error = await refused(served.call("Fail"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "250"


async def test_our_own_fault_leaves_its_text_in_the_log_under_its_id(serve: Serve, log_lines: Callable[[], Any]) -> None:
    async with serve(Fail=raising(RuntimeError("secret /srv/x"))) as served:
        error = await refused(served.call("Fail", metadata=(("x-request-id", "mine"),)))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()
    (record,) = [line for line in log_lines() if line["event"] == "call failed"]
    assert record["error_id"] in error.details()
    assert record["request_id"] == "mine"
    assert "secret /srv/x" in record["exception"]


async def test_a_call_without_a_deadline_gets_the_default(serve: Serve) -> None:
    async def wait(request: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with serve(Wait=wait, settings={"default_deadline_s": 1e-9}) as served:
        error = await refused(served.call("Wait"))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert served.metric("grpc_server_handled_total", grpc_service="test.Service", grpc_method="Wait", grpc_code="DEADLINE_EXCEEDED") == 1


async def test_a_deadline_of_its_own_replaces_the_default(serve: Serve) -> None:
    async def remaining(request: bytes, context: Any) -> bytes:
        await some_turns()
        return str(context.time_remaining()).encode()

    async with serve(Remaining=remaining, settings={"default_deadline_s": 1e-9}) as served:
        assert 0 < float(await served.call("Remaining", timeout=30)) < 31  # gRPC rounds a timeout up on its way


async def test_a_caller_that_goes_ends_its_work_and_is_counted_as_cancelled(serve: Serve) -> None:
    entered, ended = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    async with serve(Wait=wait) as served:
        call = asyncio.ensure_future(served.call("Wait"))
        await entered.wait()
        call.cancel()
        await asyncio.wait_for(ended.wait(), 10)
    assert served.metric("grpc_server_handled_total", grpc_service="test.Service", grpc_method="Wait", grpc_code="CANCELLED") == 1
    assert served.metric("grpc_server_in_flight") == 0


async def test_streams_have_their_statuses_and_no_default_deadline(serve: Serve) -> None:
    async def count(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"1"
        await some_turns()
        yield b"2"
        raise faults.OutOfRange("past the end")

    async with serve(settings={"default_deadline_s": 1e-9}) as served:
        handler = grpc.method_handlers_generic_handler("test.Streams", {"Count": grpc.unary_stream_rpc_method_handler(count)})
        served.server.grpc.add_generic_rpc_handlers((handler,))
        call = served.channel.unary_stream("/test.Streams/Count")(b"")
        assert [await call.read(), await call.read()] == [b"1", b"2"]
        error = await refused(call.read())
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    assert served.metric("grpc_server_handled_total", grpc_service="test.Streams", grpc_method="Count", grpc_code="OUT_OF_RANGE") == 1


async def test_a_library_servicers_own_abort_keeps_its_code(serve: Serve) -> None:
    async with serve() as served:
        error = await refused(health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest(service="nobody")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    labels = {"grpc_service": "grpc.health.v1.Health", "grpc_method": "Check", "grpc_code": "NOT_FOUND"}
    assert served.metric("grpc_server_handled_total", **labels) == 1


async def test_an_unknown_method_is_unimplemented(serve: Serve) -> None:
    async with serve(Echo=echo) as served:
        error = await refused(served.call("Unknown"))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
