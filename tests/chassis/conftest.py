"""A tiny service of bytes: `/test.Service/Method` for each behaviour given."""

import io
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import structlog

from services.chassis import logs
from services.chassis.errors import ErrorTable
from services.chassis.server import Server
from services.chassis.settings import ServerSettings

SERVICE = "test.Service"


@dataclass(frozen=True, slots=True)
class Served:
    server: Server
    channel: grpc.aio.Channel

    async def call(self, method: str, request: bytes = b"", **options: Any) -> bytes:
        """One unary call; raises grpc.aio.AioRpcError."""
        answer: bytes = await self.channel.unary_unary(f"/{SERVICE}/{method}")(request, **options)
        return answer

    def metric(self, name: str, **labels: str) -> float | None:
        return self.server.registry.get_sample_value(name, labels)


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What has been logged so far, as the process itself would write it; the parameter is the level, `info` without one."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    logs.configure(getattr(request, "param", "info"))
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    structlog.reset_defaults()


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve() -> Serve:
    """`async with serve(Name=behaviour, settings={...}, errors={...}) as served`: ready, on a free port."""

    @asynccontextmanager
    async def start(
        settings: Mapping[str, Any] | None = None, errors: Mapping[type[BaseException], grpc.StatusCode] | None = None, **behaviours: Any
    ) -> AsyncIterator[Served]:
        server = Server(ServerSettings(**(settings or {})), ErrorTable(errors))
        handlers = {name: grpc.unary_unary_rpc_method_handler(behaviour) for name, behaviour in behaviours.items()}
        server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        async with server.running([SERVICE]):
            await server.set_ready(SERVICE, True)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                yield Served(server, channel)

    return start
