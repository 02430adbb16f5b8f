"""Where the repository's channels point: what this replica is to serve."""

import asyncio
import time
from collections.abc import Iterator

from services.inference.residency import Key
from services.inference.traffic.splits import Found, Splits
from services.repository.store import Repository

Route = tuple[str, str]  # model, channel


class Wanted:
    """The channels, and the splits of their calls, as of the last look."""

    def __init__(self, repository: Repository, splits: Splits) -> None:
        self._repository = repository
        self._splits = splits
        self._channels: dict[str, dict[str, int]] = {}  # model -> channel -> version
        self._changed_ns: dict[str, int] = {}

    def version(self, name: str, channel: str) -> int | None:
        """The version that a channel points at."""
        return self._channels.get(name, {}).get(channel)

    def routes(self) -> Iterator[tuple[Route, Key]]:
        """Every channel with its version."""
        for name, channels in self._channels.items():
            for channel, version in channels.items():
                yield (name, channel), (name, version)

    def versions(self) -> set[Key]:
        """Versions that a channel points at, or that its split uses."""
        return {*(key for _, key in self.routes()), *self._splits.versions()}

    async def look(self) -> None:
        """Reads what moved. Raises OSError."""
        for name, (channels, splits) in (await asyncio.to_thread(self._read_changes)).items():
            self._channels[name] = channels
            self._splits.want(name, splits)
        for name in [name for name, channels in self._channels.items() if not channels]:
            del self._channels[name]

    def _read_changes(self) -> dict[str, tuple[dict[str, int], dict[str, Found]]]:
        """Channels and splits of the models whose channels moved since the last look: one stat per model that did not."""
        names = self._repository.names()
        seen_ns: dict[str, int] = {}
        moved: dict[str, tuple[dict[str, int], dict[str, Found]]] = {name: ({}, {}) for name in self._changed_ns if name not in names}
        for name in names:
            changed_ns = self._repository.channels_changed_ns(name)
            # A file system's clock ticks in milliseconds: what moved just now may move again within the tick.
            if self._changed_ns.get(name) != changed_ns or self._is_fresh(changed_ns):
                moved[name] = (self._repository.channels(name), self._splits.read(name, self._repository.traffic(name)))
                seen_ns[name] = changed_ns
        # Only now: had the disk failed half-way, the next look must read again what this one did not get to tell.
        self._changed_ns.update(seen_ns)
        for name in moved.keys() - set(names):
            self._changed_ns.pop(name, None)
        return moved

    def _is_fresh(self, changed_ns: int) -> bool:
        return time.time_ns() - changed_ns < 5_000_000_000
