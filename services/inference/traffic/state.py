"""What splits must not forget: counts of calls and outcomes, and which arms were taken out; in a folder that replicas share.

    traffic/MODEL/CHANNEL/REVISION/counts/REPLICA.json   what this process has counted, replaced every few seconds
    traffic/MODEL/CHANNEL/REVISION/out/ARM.json          this arm is out, and why: for every replica and after every restart

Each file has one writer, so nothing is locked but the replica's name.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Lock
from urllib.parse import quote

import structlog
from pydantic import TypeAdapter, ValidationError

from services.inference.traffic.tallies import Tally
from services.repository.atomic import replace_file
from services.repository.references import CHANNEL

log = structlog.get_logger("hone.traffic")

KEPT_REVISIONS = 10  # of a split; older ones are removed
_TALLY = TypeAdapter(Tally)


@dataclass(frozen=True, slots=True)
class Split:
    """One revision of a channel's split, as the folder names it."""

    model: str
    channel: str
    revision: int

    def __str__(self) -> str:
        return f"{self.model}:{self.channel} revision {self.revision}"


@dataclass(frozen=True, slots=True)
class Kept:
    """What the folder knows of a split: this replica's own counts, the others', how many those are, and each arm out with its reason."""

    mine: Tally
    others: Tally
    replicas: int
    taken_out: dict[str, str]


class StateFolder:
    """Reads and writes on a disk: call it from a thread. Every method raises OSError where the disk does.

    Processes of one replica name, as on one machine, count apart: each holds a number of its own as long as it lives.
    """

    def __init__(self, folder: Path, replica: str) -> None:
        self._folder = folder
        self._replica = quote(replica, safe="")
        self._name = ""
        self._lock = -1
        self._read: dict[Path, tuple[int, Tally]] = {}
        self._one_at_a_time = Lock()  # looking at the repository and keeping counts are two threads

    def load(self, split: Split) -> Kept:
        """A file that cannot be parsed is as if it were not there, and is told in the log."""
        own = f"{self._own_name()}.json"
        with self._one_at_a_time:
            tallies = {path.name: self._tally(path) for path in sorted((self._home(split) / "counts").glob("*.json"))}
        others = [tally for name, tally in tallies.items() if name != own]
        return Kept(Tally.sum([tallies[own]] if own in tallies else []), Tally.sum(others), len(others), dict(self._taken_out(split)))

    def save(self, split: Split, mine: Tally) -> None:
        """Replaces this process's counts."""
        replace_file(self._home(split) / "counts" / f"{self._own_name()}.json", _TALLY.dump_json(mine))

    def take_out(self, split: Split, arm: str, reason: str) -> None:
        """Tells every replica."""
        replace_file(self._home(split) / "out" / f"{arm}.json", json.dumps({"reason": reason}).encode())

    def prune(self, split: Split) -> None:
        """Removes what was kept of revisions long past."""
        home = self._home(split).parent
        revisions = sorted(int(path.name) for path in home.glob("[0-9]*") if path.name.isdigit()) if home.is_dir() else []
        for revision in [each for each in revisions if each < split.revision][:-KEPT_REVISIONS]:
            shutil.rmtree(home / str(revision), ignore_errors=True)  # another replica may be at it

    def close(self) -> None:
        """Gives the replica's number to whoever starts next."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock, self._name = -1, ""

    def _home(self, split: Split) -> Path:
        return self._folder / "traffic" / split.model / split.channel / str(split.revision)

    def _own_name(self) -> str:
        """This process's name in counts. Taken with the first split that there is: a folder that nobody needs is not made."""
        with self._one_at_a_time:
            if not self._name:
                replicas = self._folder / "replicas"
                replicas.mkdir(parents=True, exist_ok=True)
                self._name, self._lock = next(found for number in count() if (found := _taken(replicas, f"{self._replica}.{number}")))
            return self._name

    def _tally(self, path: Path) -> Tally:
        try:
            changed_ns = path.stat().st_mtime_ns
            if self._read.get(path, (0, None))[0] != changed_ns:
                self._read[path] = (changed_ns, _TALLY.validate_json(path.read_bytes()))
            return self._read[path][1]
        except FileNotFoundError:  # pruned meanwhile
            return Tally()
        except ValidationError as error:
            log.error("counts cannot be read and do not count", path=str(path), error=str(error))
            return Tally()

    def _taken_out(self, split: Split) -> Iterator[tuple[str, str]]:
        for path in sorted((self._home(split) / "out").glob("*.json")):
            reason = "taken out by another replica"
            with suppress(ValueError, KeyError, TypeError):  # that the file is there is what counts
                reason = str(json.loads(path.read_bytes())["reason"])
            if CHANNEL.fullmatch(path.stem):
                yield path.stem, reason


def _taken(folder: Path, name: str) -> tuple[str, int] | None:
    """The name with the descriptor that holds it, until it is closed or the process ends; None where another holds it."""
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return name, descriptor
