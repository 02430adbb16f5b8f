"""Health, reflection, limits, the port, and an orderly stop."""

import asyncio
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.chassis.errors import ErrorTable
from services.chassis.probe import probe
from services.chassis.server import Server
from services.chassis.settings import ServerSettings

Serve = Callable[..., AbstractAsyncContextManager[Any]]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def echo(request: bytes, context: Any) -> bytes:
    return request


class Gate:
    """A behaviour that answers when the gate opens."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, request: bytes, context: Any) -> bytes:
        self.entered.set()
        await self.open.wait()
        return b"done"


async def health(channel: grpc.aio.Channel, service: str) -> int:
    response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return int(response.status)


async def test_health_tells_the_process_and_each_service(serve: Serve) -> None:
    async with serve(Echo=echo) as served:
        assert await health(served.channel, "") == SERVING
        assert await health(served.channel, "test.Service") == SERVING
        await served.server.set_ready("test.Service", False)
        assert await health(served.channel, "test.Service") == NOT_SERVING
        assert await health(served.channel, "") == SERVING


async def test_a_watcher_is_told_before_the_stop_and_does_not_hold_it_up(serve: Serve) -> None:
    told: list[int] = []
    first = asyncio.Event()

    async def watch(channel: grpc.aio.Channel) -> grpc.StatusCode:
        try:
            async for response in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="test.Service")):
                told.append(response.status)
                first.set()
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK  # an orderly end

    server = Server(ServerSettings(grace_s=3_600), ErrorTable())
    async with asyncio.timeout(20):
        async with server.running(["test.Service"]):
            await server.set_ready("test.Service", True)
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
            watching = asyncio.ensure_future(watch(channel))
            await first.wait()
        assert await watching is grpc.StatusCode.OK
    await channel.close()
    assert told == [SERVING, NOT_SERVING]


async def test_reflection_lists_the_services(serve: Serve) -> None:
    async with serve(Echo=echo) as served:
        stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = [service.name async for response in call for service in response.list_services_response.service]
    assert sorted(names) == ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "test.Service"]


async def test_a_taken_port_is_refused_and_not_shared(serve: Serve) -> None:
    async with serve(Echo=echo) as served:
        second = Server(ServerSettings(port=served.server.port), ErrorTable())
        with pytest.raises(OSError, match="cannot listen on"):
            async with second.running([]):
                pass
        assert await served.call("Echo", b"still here") == b"still here"


async def test_a_message_over_the_limit_is_refused_both_ways(serve: Serve) -> None:
    async def grow(request: bytes, context: Any) -> bytes:
        return bytes(1 << 17)

    async with serve(Echo=echo, Grow=grow, settings={"max_message_bytes": 1 << 16}) as served:
        for call in (served.call("Echo", bytes(1 << 17)), served.call("Grow")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await served.call("Echo", bytes(1 << 15)) == bytes(1 << 15)


async def test_calls_beyond_the_limit_are_refused_at_once(serve: Serve) -> None:
    gate = Gate()
    async with serve(Wait=gate, settings={"max_concurrent_calls": 1}) as served:
        first = asyncio.ensure_future(served.call("Wait"))
        await gate.entered.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.call("Wait")
        gate.open.set()
        assert await first == b"done"
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_stop_lets_running_calls_finish_and_refuses_new_ones() -> None:
    gate, started, stopping = Gate(), asyncio.Event(), asyncio.Event()
    server = Server(ServerSettings(grace_s=3_600), ErrorTable())
    handlers = {"Wait": grpc.unary_unary_rpc_method_handler(gate)}
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))

    async def live() -> None:
        async with server.running([]):
            started.set()
            await stopping.wait()

    life = asyncio.ensure_future(live())
    await started.wait()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        wait = channel.unary_unary("/test.Service/Wait")
        running = asyncio.ensure_future(wait(b""))
        await gate.entered.wait()
        watcher = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watcher.read()).status == SERVING
        stopping.set()
        assert (await watcher.read()).status == NOT_SERVING
        assert await watcher.read() is grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wait(b"")
        gate.open.set()
        assert await running == b"done"
        await life
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_metrics_port_serves_the_registry(log_lines: Callable[[], Any]) -> None:
    server = Server(ServerSettings(metrics_port=0), ErrorTable())
    async with server.running([]):
        (port,) = [line["metrics_port"] for line in log_lines() if line["event"] == "listening"]
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read())
    assert b"grpc_server_in_flight" in page


async def test_listening_to_everyone_is_warned_about(log_lines: Callable[[], Any]) -> None:
    async with Server(ServerSettings(host="0.0.0.0"), ErrorTable()).running([]):
        pass
    assert any("without credentials" in line["event"] and line["level"] == "warning" for line in log_lines())


async def test_the_probe_tells_serving_from_anything_else(serve: Serve) -> None:
    async with serve(Echo=echo) as served:
        address = f"127.0.0.1:{served.server.port}"
        assert await asyncio.to_thread(probe, address) == ""
        assert await asyncio.to_thread(probe, address, "test.Service") == ""
        await served.server.set_ready("test.Service", False)
        assert await asyncio.to_thread(probe, address, "test.Service") == "NOT_SERVING"
        assert (await asyncio.to_thread(probe, address, "nobody")).startswith("NOT_FOUND")
    assert (await asyncio.to_thread(probe, address)).startswith("UNAVAILABLE")


async def probe_status(*arguments: str) -> int:
    command = [sys.executable, "-m", "services.chassis.probe", *arguments]
    process = await asyncio.create_subprocess_exec(*command, cwd=Path(__file__).parents[2], stderr=asyncio.subprocess.DEVNULL)
    return await process.wait()


async def test_the_probe_ends_with_0_only_when_serving(serve: Serve) -> None:
    async with serve(Echo=echo) as served:
        address = f"127.0.0.1:{served.server.port}"
        assert await probe_status(address, "test.Service") == 0
        assert await probe_status(address, "nobody") == 1


_STARTING_PROGRAMS = """
import services, asyncio, grpc, sys, uvloop

async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    await channel.channel_ready()
    for _ in range(20):
        child = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "", start_new_session=True)
        assert await child.wait() == 0
    await server.stop(None)

uvloop.run(main())
"""


def test_a_service_starts_programs_without_running_grpc_in_the_fork() -> None:
    done = subprocess.run([sys.executable, "-c", _STARTING_PROGRAMS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "fork" not in done.stderr  # by which gRPC tells that its handlers ran; it may tell of the closed connection too
