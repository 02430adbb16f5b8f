"""Copies of calls for a shadow version: off the callers' path, few at once, and none while callers wait."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from services.backends import Array
from services.inference.models import Models
from services.inference.traffic.agreement import compare
from services.inference.traffic.live import LiveSplit
from services.inference.traffic.splits import Route
from services.repository.traffic import Shadow

log = structlog.get_logger("hone.traffic")

PATIENCE_S = 10.0  # a copy that is not answered by then is given up
Outputs = Mapping[str, Array]
# Answers the call that is copied once more: by the version of the reference, by the deadline on the monotonic clock.
Run = Callable[[str, float], Awaitable[Outputs]]


class Shadows:
    """At most `most` copies run at once."""

    def __init__(self, models: Models, most: int) -> None:
        self._models = models
        self._most = most
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, route: Route, outputs: Outputs, run: Run) -> None:
        """Copies an answered call where its split has a shadow and chance has it. Never waits, never raises.

        Only the control's calls are copied, so that all agreement is with the control.
        """
        live = route.live
        if live is None or (shadow := live.plan.shadow) is None or route.arm != live.plan.control.name or live.draw() >= shadow.share:
            return
        if len(self._tasks) >= self._most or self._is_busy(route):
            live.count_uncopied(failed=False)
            return
        task = asyncio.get_running_loop().create_task(self._copy(live, shadow, outputs, run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _is_busy(self, route: Route) -> bool:
        """While calls wait for the control, the processor is theirs."""
        served, _ = self._models.find(route.reference)
        return served.engine is None or served.engine.queued_rows > 0

    async def _copy(self, live: LiveSplit, shadow: Shadow, outputs: Outputs, run: Run) -> None:
        reference = f"{live.split.model}@{shadow.version}"
        try:
            answered = await run(reference, time.monotonic() + PATIENCE_S)
            served, _ = self._models.find(reference)
            live.count_copy(await asyncio.to_thread(compare, served.signature.task, outputs, answered))
        except Exception as error:  # whatever it is: it happened to a copy, and is told as a count
            log.debug("a shadow did not answer", split=str(live.split), version=shadow.version, error=str(error))
            live.count_uncopied(failed=True)

    async def settle(self) -> None:
        """Returns when every copy begun has ended."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Gives up the copies under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
