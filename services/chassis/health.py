"""`grpc.health.v1.Health`, with watches that end when the server stops."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis import faults

_STATUS = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpcio-health-checking publishes no types
    """Which services can do their work. "" is the process itself.

    grpcio-health-checking's own servicer was rejected: its watches never end, so that one watcher makes each stop take the whole grace.
    """

    def __init__(self) -> None:
        self._ready: dict[str, bool] = {}
        self._stopping = False
        self._changed = asyncio.Condition()

    async def set(self, service: str, ready: bool) -> None:
        async with self._changed:
            self._ready[service] = ready
            self._changed.notify_all()

    def is_ready(self, service: str) -> bool:
        return self._ready.get(service, False)

    async def stop(self) -> None:
        """Tells every watcher NOT_SERVING and ends its stream."""
        async with self._changed:
            self._ready = dict.fromkeys(self._ready, False)
            self._stopping = True
            self._changed.notify_all()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.service not in self._ready:
            raise faults.NotFound(f"no service {request.service!r} here")
        return _STATUS(status=self._status(request.service))

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        told = None
        while True:
            async with self._changed:
                while told == self._status(request.service) and not self._stopping:
                    await self._changed.wait()
                status = self._status(request.service)
            if status == told:
                return
            told = status
            yield _STATUS(status=told)

    def _status(self, service: str) -> int:
        ready = self._ready.get(service)
        if ready is None:
            return int(_STATUS.SERVICE_UNKNOWN)
        return int(_STATUS.SERVING if ready else _STATUS.NOT_SERVING)
