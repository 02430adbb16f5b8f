"""Which versions this replica serves: it follows the repository's channels, loads aside, switches, drains."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import structlog

from services.chassis.faults import NotFound, Unavailable, WrongState
from services.inference.metrics import Metrics
from services.inference.served import ServedVersion, State
from services.inference.settings import InferenceSettings
from services.repository.references import Reference, parse
from services.repository.store import Damaged, Repository, UnknownModel

log = structlog.get_logger("hone.models")

Key = tuple[str, int]  # model, version
LOAD_S = 2.0  # a caller is asked to come back after so long while a version loads


class Models:
    """The versions on this replica and the channels that lead to them.

    A channel keeps leading to its old version until the new one is warm; a failed load keeps the old one and says why.
    """

    def __init__(self, repository: Repository, settings: InferenceSettings, metrics: Metrics) -> None:
        self._repository = repository
        self._settings = settings
        self._metrics = metrics
        self._versions: dict[Key, ServedVersion] = {}
        self._routes: dict[tuple[str, str], Key] = {}  # (model, channel) -> version that answers it now
        self._wanted: dict[str, dict[str, int]] = {}  # model -> channel -> version, as the repository says
        self._pinned: set[Key] = set()  # loaded by LoadModel
        self._changed_ns: dict[str, int] = {}
        self._loads: dict[Key, asyncio.Task[None]] = {}
        self._unloads: set[asyncio.Task[None]] = set()
        self._look = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, "tokenize")

    # Serving calls

    def find(self, reference: str) -> tuple[ServedVersion, str]:
        """The version behind a reference, ready to be lent, and the channel that led to it ("" for NAME@VERSION).

        Raises:
            BadName: the reference is malformed.
            NotFound: no such model, version or channel.
            WrongState: the version is not loaded here.
            Unavailable: it is loading or draining, or could not be loaded.
        """
        wanted = parse(reference)
        key = (wanted.name, wanted.version) if wanted.version is not None else self._routes.get((wanted.name, wanted.channel))
        served = self._versions.get(key) if key is not None else None
        if served is not None and served.state is State.READY:
            return served, wanted.channel
        raise self._why_not(wanted, served)

    def _why_not(self, wanted: Reference, served: ServedVersion | None) -> Exception:
        if served is None:
            resolved = self._repository.resolve(wanted)  # raises UnknownModel
            served = self._versions.get((wanted.name, resolved.manifest.version))
            if served is None and wanted.version is not None:
                return WrongState(f"model: {wanted} is not loaded on this replica; LoadModel loads it")
            if served is None or served.state is State.READY:  # the channel moved since the last look
                self._look.set()
                return Unavailable(f"{wanted} is about to be served", LOAD_S)
        if served.state is State.FAILED:
            return Unavailable(f"{wanted} could not be loaded: {served.reason}")
        return Unavailable(f"{wanted} is {served.state.value.lower()}", LOAD_S if served.state is State.LOADING else None)

    def all(self) -> list[ServedVersion]:
        """Every version known to this replica."""
        return [self._versions[key] for key in sorted(self._versions)]

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
            async with asyncio.timeout(self._settings.follow_s):
                await self._look.wait()

    async def look(self) -> bool:
        """One look: starts loads, switches what is ready, unloads what nothing leads to. False when the repository cannot be read."""
        try:
            changed = await asyncio.to_thread(self._read_changes)
        except OSError as error:
            log.error("the repository cannot be read", error=str(error))
            return False
        self._wanted.update(changed)
        for name in [name for name in self._wanted if not self._wanted[name]]:
            del self._wanted[name]
        await self._apply()
        return True

    async def settle(self) -> None:
        """Returns when every load begun has ended."""
        while self._loads:
            await asyncio.gather(*self._loads.values(), return_exceptions=True)

    def _read_changes(self) -> dict[str, dict[str, int]]:
        """Channels of the models whose channels moved since the last look: one stat per model that did not."""
        names = self._repository.names()
        seen_ns: dict[str, int] = {}
        moved: dict[str, dict[str, int]] = {name: {} for name in self._changed_ns if name not in names}
        for name in names:
            changed_ns = self._repository.channels_changed_ns(name)
            # A file system's clock ticks in milliseconds: what moved just now may move again within the tick.
            if self._changed_ns.get(name) != changed_ns or self._is_fresh(changed_ns):
                moved[name] = self._repository.channels(name)
                seen_ns[name] = changed_ns
        # Only now: had the disk failed half-way, the next look must read again what this one did not get to tell.
        self._changed_ns.update(seen_ns)
        for name in moved.keys() - set(names):
            self._changed_ns.pop(name, None)
        return moved

    def _is_fresh(self, changed_ns: int) -> bool:
        return time.time_ns() - changed_ns < 5_000_000_000

    async def _apply(self) -> None:
        for name, channels in self._wanted.items():
            for channel, version in channels.items():
                try:
                    self._begin_load((name, version))
                except (UnknownModel, Damaged, OSError) as error:  # this one alone; the other models are followed
                    log.error("channel points at a version that cannot be read", model=name, channel=channel, error=str(error))
        self._switch()
        self._drop_unneeded()

    def _begin_load(self, key: Key) -> asyncio.Task[None] | None:
        """Starts loading a version that is not here; the running load when there is one already."""
        if key in self._versions:
            return self._loads.get(key)
        served = self._versions[key] = ServedVersion(self._repository.manifest(*key))
        task = self._loads[key] = asyncio.get_running_loop().create_task(self._load(key, served))
        return task

    async def _load(self, key: Key, served: ServedVersion) -> None:
        try:
            await served.load(self._repository, self._settings, self._metrics, self._pool)
            log.info("version is ready", model=served.manifest.reference, backend=served.backend_name)
        except Exception as error:
            # Kept in the version's state, where callers find it: nobody awaits this task.
            log.error("version could not be loaded; what served before goes on", model=served.manifest.reference, exc_info=error)
        finally:
            del self._loads[key]
            self._switch()
            self._drop_unneeded()

    def _switch(self) -> None:
        for name, channels in self._wanted.items():
            for channel, version in channels.items():
                served = self._versions.get((name, version))
                if served is not None and served.state is State.READY:
                    self._routes[name, channel] = (name, version)
        for name, channel in [route for route in self._routes if route[1] not in self._wanted.get(route[0], {})]:
            del self._routes[name, channel]

    def _drop_unneeded(self) -> None:
        needed = {*self._routes.values(), *self._pinned, *((name, v) for name, channels in self._wanted.items() for v in channels.values())}
        for key, served in list(self._versions.items()):
            if key in needed or key in self._loads or served.state is State.DRAINING:
                continue
            self._unload(key, served)

    def _unload(self, key: Key, served: ServedVersion) -> None:
        async def unload() -> None:
            await served.unload()
            self._versions.pop(key, None)
            log.info("version was unloaded", model=served.manifest.reference)

        served.state = State.DRAINING
        task = asyncio.get_running_loop().create_task(unload())
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)

    # Control

    async def load(self, reference: str) -> ServedVersion:
        """Loads a version and keeps it until it is unloaded. Raises BadName, UnknownModel, WrongState, Unavailable while it drains."""
        manifest = self._repository.resolve(reference).manifest
        key = (manifest.name, manifest.version)
        before = self._versions.get(key)
        if before is not None and before.state is State.DRAINING:
            raise Unavailable(f"{manifest.reference} is draining", LOAD_S)
        if before is not None and before.state is State.FAILED and key not in self._loads:
            del self._versions[key]
        self._pinned.add(key)
        task = self._begin_load(key)
        if task is not None:
            await asyncio.gather(asyncio.shield(task), return_exceptions=True)
        served = self._versions.get(key)
        if served is None or served.state is not State.READY:
            self._pinned.discard(key)
            raise WrongState(f"model: {manifest.reference} could not be loaded: {served.reason if served else 'it was unloaded'}")
        return served

    def unload(self, reference: str) -> None:
        """Stops serving a version once its calls are done. Raises BadName, NotFound, WrongState."""
        wanted = parse(reference)
        if wanted.version is None:
            raise WrongState(f"model: {reference!r} must be NAME@VERSION; channels are followed, not unloaded")
        key = (wanted.name, wanted.version)
        served = self._versions.get(key)
        if served is None:
            raise NotFound(f"{wanted} is not loaded on this replica")
        # A channel on its way to a newer version, or whose newer version failed, is still answered by the old one.
        channels = {channel for channel, version in self._wanted.get(wanted.name, {}).items() if version == wanted.version}
        if channels := channels.union(self.channels_of(served)):
            raise WrongState(f"model: channel {', '.join(sorted(channels))} points at {wanted}")
        self._pinned.discard(key)
        self._drop_unneeded()

    async def close(self) -> None:
        """Ends loads and unloads everything."""
        await self.settle()
        for key, served in list(self._versions.items()):
            if served.state is not State.DRAINING:
                self._unload(key, served)
        await asyncio.gather(*self._unloads, return_exceptions=True)
        self._pool.shutdown()
