"""Keeps what splits count, adds up the replicas, and lets guardrails judge: every few seconds, off the callers' path."""

import asyncio
from collections.abc import Mapping

import structlog

from services.inference.traffic.live import LiveSplit
from services.inference.traffic.splits import Splits
from services.inference.traffic.state import StateFolder
from services.inference.traffic.tallies import Tally

log = structlog.get_logger("hone.traffic")


class Keeper:
    """`period_s` is how old other replicas' counts may get, and how long a bad arm goes on answering once it is known to be one."""

    def __init__(self, splits: Splits, state: StateFolder, period_s: float) -> None:
        self._splits = splits
        self._state = state
        self._period_s = period_s
        self._fault = ""

    async def follow(self) -> None:
        """Keeps and judges again and again; ends when cancelled. When the disk fails it is logged, and judged is from memory."""
        while True:
            await asyncio.sleep(self._period_s)
            try:
                await self.keep()
            except Exception as error:  # guardrails that have stopped without a word would be worse than none
                log.error("splits could not be judged this time", exc_info=error)

    async def keep(self) -> None:
        """One round."""
        faults = [await self._bury(live) for live in self._splits.take_ended()]
        faults += [await self._round(live) for live in self._splits.live()]
        fault = next(filter(None, faults), "")
        if fault and fault != self._fault:  # once, not every few seconds
            log.error("counts of splits cannot be kept; they are in memory alone", error=fault)
        self._fault = fault

    async def close(self) -> None:
        """Saves what was counted last."""
        await self.keep()
        self._state.close()

    async def _bury(self, live: LiveSplit) -> str:
        """The disk's fault, if it has one."""
        try:
            await self._save(live)
            await asyncio.to_thread(self._state.prune, live.split)
        except OSError as error:
            return str(error)
        return ""

    async def _round(self, live: LiveSplit) -> str:
        """The disk's fault, if it has one."""
        told: Mapping[str, str] = {}
        fault = ""
        try:
            await self._save(live)
            kept = await asyncio.to_thread(self._state.load, live.split)
            live.others, live.replicas, told = kept.others, kept.replicas, kept.taken_out
        except OSError as error:
            fault = str(error)
        live.follow(told)
        live.judge()
        return fault or await self._tell(live, told)

    async def _save(self, live: LiveSplit) -> None:
        if not live.changed:
            return
        live.changed = False
        try:
            await asyncio.to_thread(self._state.save, live.split, Tally.sum([live.mine]))
        except OSError:
            live.changed = True
            raise

    async def _tell(self, live: LiveSplit, told: Mapping[str, str]) -> str:
        """Lets every replica know which arms are out; the disk's fault, if it has one."""
        try:
            for arm, reason in live.taken_out.items():
                if arm not in told:
                    await asyncio.to_thread(self._state.take_out, live.split, arm, reason)
        except OSError as error:
            return str(error)
        return ""
