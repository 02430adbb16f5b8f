"""Finished steps kept under the digest of everything that shapes them, so that no work is done twice."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.optimization import folder
from services.repository.manifest import Frozen, Signature

_MODEL, _RECORD, _STAGING = "model", "step.json", "staging"


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
    """`root/DIGEST/{step.json, model/…}`, each made aside and renamed whole: a process killed at any instant leaves no half of one."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        (self._root / _STAGING).mkdir(parents=True, exist_ok=True)
        self._sweep()

    def _sweep(self) -> None:
        """Removes what killed processes were staging. A living one holds a lock on its folder."""
        for left in (self._root / _STAGING).iterdir():
            with contextlib.suppress(OSError), _locked(left):  # somebody's, or gone already
                shutil.rmtree(left)

    def model(self, digest: str) -> Path:
        return self._root / digest / _MODEL

    def find(self, digest: str) -> KeptStep | None:
        """The step with its files verified; one that was damaged is removed and counts as absent."""
        record = self._root / digest / _RECORD
        if not record.exists():
            return None
        with contextlib.suppress(ValidationError, OSError):
            kept = KeptStep.model_validate_json(record.read_bytes())
            if folder.digests(self.model(digest)) == dict(kept.files):
                os.utime(record)  # for `shrink`: it was of use now
                return kept
        self._remove(digest)
        return None

    def shrink(self, max_bytes: int) -> None:
        """Removes the steps that were of use longest ago until the others fit. Not while a job may be reading them."""
        records = sorted(self._root.glob(f"*/{_RECORD}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        kept_bytes = 0
        for record in records:
            kept_bytes += folder.size_bytes(record.parent)
            if kept_bytes > max_bytes:
                self._remove(record.parent.name)

    def _remove(self, digest: str) -> None:
        """Renamed away first: nobody finds half of it."""
        aside = self._root / _STAGING / uuid.uuid4().hex
        (self._root / digest).rename(aside)
        shutil.rmtree(aside)

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """An empty model folder to fill. It is gone afterwards unless `keep` took it."""
        staged = self._root / _STAGING / uuid.uuid4().hex
        (staged / _MODEL).mkdir(parents=True)
        with _locked(staged):
            try:
                yield staged / _MODEL
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
            return other
        return kept


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system releases when the process ends however it ends. Raises OSError when it is held."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
