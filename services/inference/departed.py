"""Versions that this replica unloaded for good: once the repository has them no more, their answers are cleared for everybody."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from services.inference.served import ServedVersion
from services.repository.store import Repository

log = structlog.get_logger("hone.models")

LOOK_S = 30.0  # nothing waits for it


class Departed:
    """Looks after deleted versions' answers in the cache service.

    Not what is merely unloaded, as when a channel moves on, a replica restarts or room is needed: other replicas may serve it, and
    a roll-back would find its answers gone when they are needed most. One replica that knew the version does; where none is left,
    its answers expire.
    """

    def __init__(self, repository: Repository, clear: Callable[[str], Awaitable[bool]]) -> None:
        """`clear` forgets a namespace, and answers False where that is to be tried again."""
        self._repository = repository
        self._clear = clear
        self._versions: dict[tuple[str, int], str] = {}  # with their namespaces

    def add(self, served: ServedVersion) -> None:
        """A version that was unloaded for good."""
        self._versions[served.manifest.name, served.manifest.version] = served.namespace

    async def follow(self) -> None:
        """Looks again and again; ends when cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Clears what the repository has no more, and forgets it then."""
        try:
            deleted = await asyncio.to_thread(self._deleted, list(self._versions))
        except OSError as error:
            log.warning("the repository cannot be read", error=str(error))
            return
        for key in deleted:
            if await self._clear(self._versions[key]):
                log.info("answers of a deleted version were cleared", namespace=self._versions.pop(key))

    def _deleted(self, keys: list[tuple[str, int]]) -> list[tuple[str, int]]:
        held = {name: set(self._repository.versions(name)) for name in {name for name, _ in keys}}
        return [(name, version) for name, version in keys if version not in held[name]]
