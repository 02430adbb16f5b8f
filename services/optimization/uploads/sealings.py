"""Uploads that are becoming versions: once each, whatever happens to the connections that ask for it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

M = TypeVar("M")


class Sealings(Generic[M]):
    """By upload id. A sealing goes on when its caller's connection breaks: who comes back gets the result."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[M]] = {}

    def running(self, upload_id: str) -> Awaitable[M] | None:
        """What the upload is becoming now, None when nothing seals it. Cancelling who awaits it does not stop it."""
        task = self._running.get(upload_id)
        return asyncio.shield(task) if task is not None else None

    async def once(self, upload_id: str, seal: Callable[[], Awaitable[M]]) -> M:
        """The sealing's result; `seal` starts only where none runs for the upload. Raises what it raises."""
        if upload_id not in self._running:
            task = self._running[upload_id] = asyncio.ensure_future(_awaited(seal))
            task.add_done_callback(lambda _: self._running.pop(upload_id))
        return await asyncio.shield(self._running[upload_id])


async def _awaited(work: Callable[[], Awaitable[M]]) -> M:
    return await work()
