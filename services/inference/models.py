"""Which versions this replica serves: it follows the repository's channels, loads aside, switches, drains."""

import asyncio
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from services.chassis.faults import NotFound, Unavailable, WrongState
from services.inference.host import Host
from services.inference.memory import held_bytes
from services.inference.metrics import Metrics
from services.inference.residency import Key, TooLarge
from services.inference.residents import LOAD_S, Residents, as_fault
from services.inference.served import ServedVersion, State
from services.inference.settings import InferenceSettings
from services.inference.traffic.splits import Splits
from services.inference.traffic.state import StateFolder
from services.inference.wanted import Route, Wanted
from services.repository.references import Reference, parse
from services.repository.store import Damaged, Repository, UnknownModel

log = structlog.get_logger("hone.models")


class Unloaded(Unavailable):
    """The version made room for others, and comes back when a call waits for it: `Models.ready` does."""

    def __init__(self, reference: Reference, key: Key) -> None:
        super().__init__(f"{reference} is not in memory at the moment", LOAD_S)
        self.key = key


class Models:
    """The versions on this replica and the channels that lead to them.

    A channel keeps leading to its old version until the new one is warm; a failed load keeps the old one and says why.
    """

    def __init__(
        self,
        repository: Repository,
        settings: InferenceSettings,
        metrics: Metrics,
        *,
        gone: Callable[[ServedVersion], None] = lambda served: None,
        clock: Callable[[], float] = time.monotonic,
        held: Callable[[], int] = held_bytes,
    ) -> None:
        """`gone` is told of each version that is unloaded for good; `held` is how many bytes the process holds now."""
        self._repository = repository
        self._settings = settings
        self._clock = clock
        self.residents = Residents(repository, settings, metrics, settled=self._settled, gone=gone, clock=clock, held=held)
        self._routes: dict[Route, Key] = {}  # the version that answers a channel now
        self.state = StateFolder(settings.state_folder, settings.replica)
        self.splits = Splits(self.state)
        self._wanted = Wanted(repository, self.splits)
        self._asked: set[Key] = set()  # loaded for a call by NAME@VERSION: kept while there is room
        self._look = asyncio.Event()

    # Serving calls

    async def ready(self, reference: str, deadline: float = math.inf) -> tuple[ServedVersion, str]:
        """`find`, for a call: it waits until the deadline, on the monotonic clock, for a version that had made room for others.

        What comes back is still there when the caller goes on, and not longer: it is to be lent before the next await.

        Raises:
            BadName, NotFound, WrongState, Unavailable: as `find`, and Unavailable where nothing can make room for now.
            TooLarge: it does not fit, whatever else is unloaded.
            DeadlineMissed: it was not loaded in time.
        """
        while True:
            try:
                served, channel = self.find(reference)
            except Unloaded as unloaded:
                await self.residents.recall(unloaded.key, deadline)
            else:
                served.last_used = self._clock()
                return served, channel

    def find(self, reference: str) -> tuple[ServedVersion, str]:
        """The version behind a reference, ready to be lent, and the channel that led to it ("" for NAME@VERSION).

        Raises:
            BadName: the reference is malformed.
            NotFound: no such model, version or channel.
            WrongState: the version is not loaded here.
            Unloaded: it was, and made room for others.
            Unavailable: it is loading or draining, or could not be loaded.
        """
        wanted = parse(reference)
        key = (wanted.name, wanted.version) if wanted.version is not None else self._routes.get((wanted.name, wanted.channel))
        served = self.residents.get(key) if key is not None else None
        if served is not None and served.state is State.READY:
            return served, wanted.channel
        raise self._why_not(wanted, served)

    def _why_not(self, wanted: Reference, served: ServedVersion | None) -> Exception:
        if (key := self._returning(wanted)) is not None:
            return Unloaded(wanted, key)
        if served is None:
            resolved = self._repository.resolve(wanted)  # raises UnknownModel
            served = self.residents.get((wanted.name, resolved.manifest.version))
            if served is None and wanted.version is not None:
                return self._not_loaded(wanted, wanted.version)
            if served is None or served.state is State.READY:  # the channel moved since the last look
                self._look.set()
                return Unavailable(f"{wanted} is about to be served", LOAD_S)
        if served.state is State.FAILED:
            return Unavailable(f"{wanted} could not be loaded: {served.reason}")
        return Unavailable(f"{wanted} is {served.state.value.lower()}", LOAD_S if served.state is State.LOADING else None)

    def _returning(self, wanted: Reference) -> Key | None:
        """The version to wait for, where the reference was served before, or would be if there were room."""
        route = self._routes.get((wanted.name, wanted.channel))
        version = wanted.version or self._wanted.version(wanted.name, wanted.channel)
        for key in ((wanted.name, version) if version else None, route):
            served = self.residents.get(key) if key is not None else None
            if served is None or key is None:
                continue
            if served.state is State.UNLOADED or (served.state is State.LOADING and (route or self.residents.is_recalled(key))):
                return key
        return None

    def _not_loaded(self, wanted: Reference, version: int) -> Exception:
        if not self._settings.load_on_demand:
            return WrongState(f"model: {wanted} is not loaded on this replica; LoadModel loads it")
        key = (wanted.name, version)
        self.residents.add(key)
        self._asked.add(key)
        return Unloaded(wanted, key)

    def all(self) -> list[ServedVersion]:
        """Every version known to this replica."""
        return self.residents.all()

    @property
    def host(self) -> Host:
        """Tells when a version has lost its last instance, or has one again."""
        return self.residents.host

    def lost(self) -> list[str]:
        """Versions that a channel leads to and that have no instance at the moment."""
        routed = (self.residents.get(key) for key in set(self._routes.values()))
        return sorted(served.manifest.reference for served in routed if served is not None and served.is_lost)

    def channels_of(self, served: ServedVersion) -> list[str]:
        """Channels that this replica answers with the version."""
        key = (served.manifest.name, served.manifest.version)
        return sorted(channel for (_, channel), at in self._routes.items() if at == key)

    # Following the repository

    async def begin(self) -> None:
        """Returns when the repository has been read once and every version that its channels point at is loaded or has failed to."""
        while not await self.look():
            await self._until_next_look()
        await self.settle()

    async def follow(self) -> None:
        """Looks at the repository again and again; ends when cancelled. A failing look is logged and repeated."""
        while True:
            await self._until_next_look()
            await self.look()

    async def _until_next_look(self) -> None:
        self._look.clear()
        with suppress(TimeoutError):
            # Unevenly, so that replicas that started together do not go on looking together.
            async with asyncio.timeout(self._settings.follow_s * random.uniform(0.8, 1.2)):  # noqa: S311
                await self._look.wait()

    async def look(self) -> bool:
        """One look: starts loads, switches what is ready, unloads what nothing leads to. False when the repository cannot be read."""
        try:
            await self._wanted.look()
        except OSError as error:
            log.error("the repository cannot be read", error=str(error))
            return False
        self._apply()
        return True

    async def settle(self) -> None:
        """Returns when every load begun has ended."""
        await self.residents.settle()

    def _apply(self) -> None:
        for route, key in self._wanted.routes():
            try:
                self._follow(route, key)
            except (UnknownModel, Damaged, OSError) as error:  # this one alone; the other models are followed
                log.error("channel points at a version that cannot be read", model=route[0], channel=route[1], error=str(error))
        for key in self.splits.coming():
            self._bring(key)
        self._settled()

    def _follow(self, route: tuple[str, str], key: Key) -> None:
        """Loads what a channel points at where there is room, and in the place of others where it replaces a version in memory.

        One that nobody has called yet pushes nobody out: it comes with its first call.
        """
        served = self.residents.add(key)
        if served.state not in (State.UNLOADED, State.FAILED) or not self.residents.may_retry(key):
            return
        before = self._routes.get(route)
        if before is not None and before != key and self.residents.is_here(before):
            self.residents.load(key, predecessor=before if before not in self._wanted.versions() else None)
        elif self.residents.fits(key):
            self.residents.load(key)

    def _bring(self, key: Key) -> None:
        """Loads a version of a split that is to be switched to, in the place of what nobody uses: its share of the calls is to come."""
        try:
            served = self.residents.add(key)
        except (UnknownModel, Damaged, OSError) as error:
            log.error("traffic uses a version that cannot be read", model=key[0], version=key[1], error=str(error))
            return
        if served.state in (State.UNLOADED, State.FAILED) and self.residents.may_retry(key):
            self.residents.load(key)

    def _settled(self) -> None:
        self._switch()
        self._drop_unneeded()

    def _switch(self) -> None:
        for route, key in self._wanted.routes():
            served = self.residents.get(key)
            if served is not None and served.state is State.READY and self._routes.get(route) != key:
                self._routes[route] = key
                self.host.changed.set()
        for route in [route for route in self._routes if self._wanted.version(*route) is None]:
            del self._routes[route]
        self.splits.switch(self._why_not_served)

    def _why_not_served(self, key: Key) -> str:
        """Empty for a version that is ready."""
        served = self.residents.get(key)
        if served is not None and served.state is State.READY:
            return ""
        reference = f"{key[0]}@{key[1]}"
        if served is None:
            return f"{reference} is not known"
        return f"{reference} is {served.state.lower()}{f': {served.reason}' if served.reason else ''}"

    def _drop_unneeded(self) -> None:
        self._asked = {key for key in self._asked if self.residents.is_here(key)}
        needed = {*self._routes.values(), *self.residents.pinned, *self._wanted.versions(), *self._asked}
        for key in self.residents.keys() - needed:
            self.residents.drop(key)

    # Control

    async def load(self, reference: str) -> ServedVersion:
        """Loads a version and keeps it until it is unloaded.

        Raises:
            BadName, UnknownModel: no such version.
            WrongState: it could not be loaded.
            TooLarge: it does not fit, whatever else is unloaded.
            Unavailable: it drains, or what is in use leaves no room for now.
        """
        manifest = self._repository.resolve(reference).manifest
        key = (manifest.name, manifest.version)
        served = self.residents.add(key)
        if served.state is State.DRAINING:
            raise Unavailable(f"{manifest.reference} is draining", LOAD_S)
        self.residents.pinned.add(key)
        self.residents.forgive(key)
        if served.state is not State.READY:
            error = await asyncio.shield(self.residents.load(key))
            if error is not None:
                self.residents.pinned.discard(key)
                if isinstance(error, TooLarge | Unavailable):
                    raise as_fault(error, manifest.reference)
        found = self.residents.get(key)
        if found is None or found.state is not State.READY:
            self.residents.pinned.discard(key)
            raise WrongState(f"model: {manifest.reference} could not be loaded: {found.reason if found else 'it was unloaded'}")
        return found

    def unload(self, reference: str) -> None:
        """Stops serving a version once its calls are done. Raises BadName, NotFound, WrongState."""
        wanted = parse(reference)
        if wanted.version is None:
            raise WrongState(f"model: {reference!r} must be NAME@VERSION; channels are followed, not unloaded")
        key = (wanted.name, wanted.version)
        served = self.residents.get(key)
        if served is None:
            raise NotFound(f"{wanted} is not loaded on this replica")
        # A channel on its way to a newer version, or whose newer version failed, is still answered by the old one.
        channels = {channel for (_, channel), at in self._wanted.routes() if at == key}
        if channels := channels.union(self.channels_of(served)):
            raise WrongState(f"model: channel {', '.join(sorted(channels))} points at {wanted}")
        if users := self.splits.channels_of(key):
            raise WrongState(f"model: the traffic of channel {', '.join(users)} uses {wanted}")
        self.residents.pinned.discard(key)
        self._asked.discard(key)
        self._drop_unneeded()

    async def close(self) -> None:
        """Ends loads and unloads everything."""
        await self.residents.close()
