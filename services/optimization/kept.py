"""Finished steps kept under the digest of everything that shapes them, so that no work is done twice.

Beside them, what unfinished steps go on from after a kill, and what expensive models answered.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.optimization import folder
from services.optimization.jobs.exhaustion import disk_is_full
from services.repository.manifest import Frozen, Signature

_MODEL, _RECORD, _STAGING, _CHECKPOINTS, _OUTPUTS = "model", "step.json", "staging", "checkpoints", "outputs"
CHECKPOINT_LIFE_S = 7 * 24 * 3600  # a step that nobody went on with for so long is given up


class KeptStep(Frozen):
    """What a technique made and told, and the digests that its files must still have."""

    signature: Signature
    notes: Mapping[str, Any]
    seconds: float
    files: Mapping[str, str]


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain JSON in canonical form."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class KeptSteps:
    """`root/DIGEST/{step.json, model/…}`, each made aside and renamed whole: a process killed at any instant leaves no half of one.

    Several processes may share `root`. What an instance found or kept is not removed by another's `shrink` until the instance
    is closed or its process ends.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._held: dict[Path, int] = {}  # descriptors with locks
        weakref.finalize(self, _close_all, self._held)
        for name in (_STAGING, _CHECKPOINTS, _OUTPUTS):
            (self._root / name).mkdir(parents=True, exist_ok=True)
        self._sweep()

    def close(self) -> None:
        """Lets go of everything that was found, kept or begun."""
        _close_all(self._held)

    def _sweep(self) -> None:
        """Removes what killed processes were staging. A living one holds a lock on its folder."""
        for left in (self._root / _STAGING).iterdir():
            with contextlib.suppress(OSError), _locked(left):  # somebody's, or gone already
                _delete(left)

    def model(self, digest: str) -> Path:
        return self._root / digest / _MODEL

    @property
    def outputs(self) -> Path:
        """A folder of files that all jobs share and that may go at any time between two uses, the least recently used first.

        A file is written aside and renamed by its maker, and touched by its readers.
        """
        return self._root / _OUTPUTS

    def checkpoints(self, digest: str) -> Path:
        """A folder for an unfinished step that lasts through kills and restarts until the step is kept.

        Two processes that make the same step at once have one each; after a kill the next takes over the first that is free.
        """
        for slot in itertools.count():
            path = self._root / _CHECKPOINTS / f"{digest}.{slot}"
            path.mkdir(exist_ok=True)
            if path in self._held or self._hold(path, fcntl.LOCK_EX):
                os.utime(path)
                return path
        raise AssertionError  # there is always another slot

    def find(self, digest: str) -> KeptStep | None:
        """The step with its files verified; one that was damaged is removed and counts as absent."""
        record = self._root / digest / _RECORD
        if not self._hold(record, fcntl.LOCK_SH):
            return None
        with contextlib.suppress(ValidationError, OSError):
            kept = KeptStep.model_validate_json(record.read_bytes())
            if folder.digests(self.model(digest)) == dict(kept.files):
                os.utime(record)  # for `shrink`: it was of use now
                return kept
        self._let_go(record)
        with contextlib.suppress(FileNotFoundError):  # another process found it damaged too
            self._remove(record.parent)
        return None

    def shrink(self, max_bytes: int) -> None:
        """Removes what was of use longest ago until the rest fits: steps, checkpoints, answers; and checkpoints given up.

        What another process is using stays, and counts.
        """
        oldest = time.time() - CHECKPOINT_LIFE_S
        kept_bytes = 0
        for entry in sorted(self._entries(), key=lambda entry: entry.used, reverse=True):
            kept_bytes += entry.size_bytes
            given_up = entry.path.parent.name == _CHECKPOINTS and entry.used < oldest
            if (kept_bytes > max_bytes or given_up) and self._remove_unused(entry):
                kept_bytes -= entry.size_bytes

    def _entries(self) -> Iterator["_Entry"]:
        for record in self._root.glob(f"*/{_RECORD}"):
            yield from _entry(record.parent, record)
        for path in (self._root / _CHECKPOINTS).iterdir():
            yield from _entry(path, path)
        for path in (self._root / _OUTPUTS).iterdir():
            yield from _entry(path, path)

    def _remove_unused(self, entry: "_Entry") -> bool:
        """False where a process uses it."""
        with contextlib.suppress(OSError), _locked(entry.lock):
            self._remove(entry.path)
            return True
        return False

    def _remove(self, path: Path) -> None:
        """Renamed away first: nobody finds half of it."""
        aside = self._root / _STAGING / uuid.uuid4().hex
        path.rename(aside)
        _delete(aside)

    def _hold(self, path: Path, lock: int) -> bool:
        """Locks a file or folder for this instance; False where another has it, or it is not there."""
        if path in self._held:
            return True
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
            if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):  # removed just before it was locked
                raise BlockingIOError
        except OSError:
            os.close(descriptor)
            return False
        self._held[path] = descriptor
        return True

    def _let_go(self, path: Path) -> None:
        descriptor = self._held.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """An empty model folder to fill. It is gone afterwards unless `keep` took it.

        A full disk is raised as what it is, an OSError, also where a library or a technique has wrapped it: it is no fault of
        the recipe's, which would be called infeasible.
        """
        staged = self._root / _STAGING / uuid.uuid4().hex
        (staged / _MODEL).mkdir(parents=True)
        with _locked(staged):
            try:
                yield staged / _MODEL
            except Exception as error:
                if disk_is_full(error):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                raise
            finally:
                shutil.rmtree(staged, ignore_errors=True)

    def keep(self, digest: str, model: Path, signature: Signature, notes: Mapping[str, Any], seconds: float) -> KeptStep:
        """Makes a staged folder the step of that digest. When another process was first, its result stands."""
        kept = KeptStep(signature=signature, notes=notes, seconds=seconds, files=folder.digests(model))
        (model.parent / _RECORD).write_text(kept.model_dump_json())
        try:
            model.parent.rename(self._root / digest)
        except OSError:
            other = self.find(digest)
            if other is None:
                raise
            kept = other
        self._hold(self._root / digest / _RECORD, fcntl.LOCK_SH)
        self._drop_checkpoints(digest)
        return kept

    def _drop_checkpoints(self, digest: str) -> None:
        """Those of this instance; another that makes the same step still needs its own."""
        for path in [path for path in self._held if path.parent.name == _CHECKPOINTS and path.name.startswith(f"{digest}.")]:
            self._remove(path)
            self._let_go(path)


@dataclass(frozen=True, slots=True)
class _Entry:
    """Something that may be removed."""

    path: Path
    lock: Path  # what its users have locked
    used: float  # in seconds since 1970
    size_bytes: int


def _entry(path: Path, lock: Path) -> Iterator[_Entry]:
    """Nothing where it went meanwhile. What is locked is touched when it is of use; of a folder, also what lies in it."""
    with contextlib.suppress(FileNotFoundError):
        size_bytes = folder.size_bytes(path) if path.is_dir() else path.stat().st_size
        touched = [lock, *(lock.rglob("*") if lock.is_dir() else ())]
        yield _Entry(path, lock, max(file.stat().st_mtime for file in touched), size_bytes)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _close_all(held: dict[Path, int]) -> None:
    while held:
        os.close(held.popitem()[1])


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system releases when the process ends however it ends. Raises OSError when it is held."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
