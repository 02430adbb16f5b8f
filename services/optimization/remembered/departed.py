"""Versions that jobs here knew: once the repository has them no more, what is remembered of them is cleared for everybody."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import structlog

from services.optimization.remembered import namespace_of
from services.repository.references import parse
from services.repository.store import Repository

log = structlog.get_logger("hone.jobs")

LOOK_S = 30.0  # nothing waits for it


class Departed:
    """Whichever replica deletes a version or ran a job on it clears its namespace; where none is left, its entries expire."""

    def __init__(self, repository: Repository, clear: Callable[[str], Awaitable[object]]) -> None:
        """`clear` forgets a namespace; whatever it raises, that is tried again."""
        self._repository = repository
        self._clear = clear
        self._references: set[str] = set()
        self._news = asyncio.Event()

    def ran(self, references: Iterable[str]) -> None:
        """A job that knew these NAME@VERSION has ended. Not before: what a running one keeps would outlive the clearing."""
        self._references.update(references)

    def deleted(self, reference: str) -> None:
        """NAME@VERSION was deleted just now."""
        self._references.add(reference)
        self._news.set()

    async def follow(self) -> None:
        """Looks again and again; ends when cancelled."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), LOOK_S)
            self._news.clear()
            await self.look()

    async def look(self) -> None:
        """Clears what the repository has no more, and forgets it then."""
        try:
            gone = await asyncio.to_thread(self._gone, sorted(self._references))
            for reference in gone:
                await self._clear(namespace_of(reference))
                self._references.discard(reference)
                log.info("what was remembered of a deleted version was cleared", version=reference)
        except Exception as error:  # an outage of the disk or the cache, whatever it looks like
            log.warning("what is remembered of deleted versions stays for now", reason=repr(error)[:200])

    def _gone(self, references: list[str]) -> list[str]:
        wanted = {reference: parse(reference) for reference in references}
        held = {name: set(self._repository.versions(name)) for name in {found.name for found in wanted.values()}}
        return [reference for reference, found in wanted.items() if found.version not in held[found.name]]
