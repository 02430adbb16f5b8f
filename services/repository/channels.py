"""The channels of one model: small files, each replaced atomically."""

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from services.repository.atomic import replace_file
from services.repository.references import CHANNEL

HISTORY = 20  # versions remembered for rolling back


class NoEarlierVersion(Exception):
    """The channel has pointed at one version only."""


@dataclass(frozen=True, slots=True)
class Channels:
    """`folder` holds one file per channel: the version it points at and those before, newest first.

    One writer at a time: the repository holds the model's lock.
    """

    folder: Path

    def read(self) -> dict[str, int]:
        """Channel to version. A file that cannot be read is as if it were not there: it never names a wrong version."""
        found = {}
        for path in sorted(self.folder.glob("*")) if self.folder.is_dir() else ():
            if CHANNEL.fullmatch(path.name) and (trail := self._trail(path.name)):
                found[path.name] = trail[0]
        return found

    def point(self, channel: str, version: int) -> None:
        """Points `channel` at `version`; pointing where it points already changes nothing."""
        trail = self._trail(channel)
        if trail[:1] != [version]:
            self._write(channel, [version, *trail])

    def roll_back(self, channel: str) -> int:
        """Points `channel` at the version before and returns it. Raises NoEarlierVersion."""
        trail = self._trail(channel)
        if len(trail) < 2:
            raise NoEarlierVersion(f"channel {channel!r} has no earlier version")
        self._write(channel, trail[1:])
        return trail[1]

    def forget(self, version: int) -> None:
        """Drops a deleted version from every history."""
        for channel in self.read():
            trail = self._trail(channel)
            if version in trail:
                kept = [v for v in trail if v != version]
                self._write(channel, [v for v, _ in groupby(kept)])  # rolling back from a version to itself would change nothing

    def changed_ns(self) -> int:
        """When a channel last moved: the folder's modification time, 0 before the first."""
        try:
            return self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _trail(self, channel: str) -> list[int]:
        try:
            content = json.loads((self.folder / channel).read_bytes())
        except (FileNotFoundError, ValueError):
            return []
        trail = content.get("versions") if isinstance(content, dict) else None
        return trail if isinstance(trail, list) and all(isinstance(v, int) for v in trail) else []

    def _write(self, channel: str, trail: list[int]) -> None:
        replace_file(self.folder / channel, json.dumps({"versions": trail[:HISTORY]}).encode())
