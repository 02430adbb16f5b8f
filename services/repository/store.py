"""The repository: `models/NAME/VERSION/` sealed and immutable, `models/NAME/channels/` pointing at them."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.repository import manifest as manifests
from services.repository.atomic import locked, replace_file, sync_folder, sync_tree
from services.repository.channels import Channels
from services.repository.manifest import FileEntry, Manifest, Signature
from services.repository.references import NAME, BadName, Reference, check_channel, check_name, check_path, parse

CHUNK_BYTES = 1 << 20


class UnknownModel(LookupError):
    """No such model, version or channel."""


class InUse(Exception):
    """A channel points at the version."""


class Damaged(Exception):
    """A sealed version's files are not what its manifest says."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference stands for now; `channel` is the one it went through, "" for `NAME@VERSION`."""

    manifest: Manifest
    folder: Path
    channel: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a new version comes from."""

    parent: str = ""
    job: str = ""
    upload_id: str = ""
    recipe: Mapping[str, Any] | None = None
    report: Mapping[str, Any] | None = None


class Repository:
    """Versions on a disk that several processes may share: readers see whole versions or none.

    `root` may be read-only for a process that only reads.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._models = self.root / "models"
        self._staging = self.root / "staging"
        self._read = lru_cache(maxsize=4096)(Manifest.read)  # sealed means never edited, so a manifest is read once

    # Reading

    def names(self) -> list[str]:
        """Models that have a version, sorted."""
        return [name for name in self._folders() if self.versions(name)]

    def versions(self, name: str) -> list[int]:
        """Sealed versions of a model, ascending; empty for an unknown one."""
        folder = self._models / check_name(name)
        return sorted(int(path.name) for path in folder.glob("[1-9]*") if path.name.isdigit()) if folder.is_dir() else []

    def manifest(self, name: str, version: int) -> Manifest:
        """Raises UnknownModel, or Damaged where the manifest cannot be read."""
        folder = self.folder(name, version)
        if not folder.is_dir():  # another process may have deleted what this one has read
            raise UnknownModel(self._unknown(name, version))
        try:
            return self._read(folder)
        except FileNotFoundError:
            raise UnknownModel(self._unknown(name, version)) from None
        except ValidationError as error:
            raise Damaged(f"{name}@{version}: manifest.json does not parse: {error}") from error

    def folder(self, name: str, version: int) -> Path:
        return self._models / check_name(name) / str(version)

    def channels(self, name: str) -> dict[str, int]:
        """Channel to version."""
        return self._channels(name).read()

    def channels_changed_ns(self, name: str) -> int:
        """A number that grows when a channel of the model moves; one stat call."""
        return self._channels(name).changed_ns()

    def resolve(self, reference: str | Reference) -> Resolved:
        """Finds the version behind a reference. Raises BadName, UnknownModel, Damaged."""
        wanted = parse(reference) if isinstance(reference, str) else reference
        version = wanted.version
        if version is None:
            version = self.channels(wanted.name).get(wanted.channel)
            if version is None:
                raise UnknownModel(self._unknown_channel(wanted))
        return Resolved(self.manifest(wanted.name, version), self.folder(wanted.name, version), wanted.channel)

    def verify(self, name: str, version: int) -> None:
        """Reads every file of a version against its digest. Raises UnknownModel, Damaged."""
        folder = self.folder(name, version)
        for entry in self.manifest(name, version).files:
            try:
                found = file_entry(folder, folder / check_path(entry.path))
            except FileNotFoundError:
                raise Damaged(f"{name}@{version}: {entry.path} is missing") from None
            if found != entry:
                raise Damaged(f"{name}@{version}: {entry.path} has digest {found.sha256}, its manifest says {entry.sha256}")

    # Writing

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder to build a version in, on the same disk; what was not sealed is removed at the end."""
        folder = self._staging / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Removes what a killed process left in staging. For the one writing process, at its start."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def seal(self, staged: Path, name: str, signature: Signature, origin: Origin) -> Manifest:
        """Makes the staged folder the model's next version, atomically.

        Raises:
            BadName: the name, or a file's path, breaks its rule.
            OSError: the disk is full or fails; nothing is visible then.
        """
        home = self._models / check_name(name)
        home.mkdir(parents=True, exist_ok=True)
        files = tuple(file_entry(staged, path) for path in _plain_files(staged))
        sync_tree(staged)  # before the lock: the weights take longest
        with locked(home):
            sealed = self._manifest(name, self._next_version(home), signature, files, origin)
            replace_file(staged / manifests.FILE_NAME, sealed.model_dump_json(indent=1).encode())
            staged.rename(home / str(sealed.version))
            sync_folder(home)
        return sealed

    def set_channel(self, name: str, channel: str, version: int) -> Manifest:
        """Points a channel at a version. Raises BadName, UnknownModel."""
        check_channel(channel)
        with self._changing(name):
            found = self.manifest(name, version)
            self._channels(name).point(channel, version)
        return found

    def roll_back(self, name: str, channel: str) -> Manifest:
        """Points a channel at the version before. Raises BadName, UnknownModel, NoEarlierVersion."""
        wanted = Reference(check_name(name), channel=check_channel(channel))
        with self._changing(name):
            self.resolve(wanted)
            return self.manifest(name, self._channels(name).roll_back(channel))

    def delete(self, name: str, version: int) -> None:
        """Removes a version; its number is never given again. Raises UnknownModel, InUse."""
        with self.staging() as grave, self._changing(name):
            self.manifest(name, version)
            users = [channel for channel, at in self.channels(name).items() if at == version]
            if users:
                raise InUse(f"{name}@{version} is what channel {', '.join(users)} points at")
            # In this order: killed in between, no number is given twice and no channel rolls back to what is gone.
            replace_file(self._models / name / "deleted" / str(version), b"")
            self._channels(name).forget(version)
            self.folder(name, version).rename(grave / "version")
        self._read.cache_clear()

    def find(self, name: str, *, upload_id: str = "", job: str = "") -> Manifest | None:
        """The version that an upload or a job made, if it did."""
        for version in reversed(self.versions(name)):
            found = self.manifest(name, version)
            if (upload_id and found.upload_id == upload_id) or (job and found.job == job):
                return found
        return None

    @contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        """One change at a time to a model's channels and versions. Raises BadName, UnknownModel."""
        home = self._models / check_name(name)
        if not home.is_dir():
            raise UnknownModel(f"no model {name!r}")
        with locked(home):
            yield

    def _folders(self) -> list[str]:
        if not self._models.is_dir():
            return []
        return sorted(path.name for path in self._models.iterdir() if NAME.fullmatch(path.name))

    def _channels(self, name: str) -> Channels:
        return Channels(self._models / check_name(name) / "channels")

    def _next_version(self, home: Path) -> int:
        deleted = home / "deleted"
        taken = [path.name for folder in (home, deleted) if folder.is_dir() for path in folder.iterdir()]
        return 1 + max((int(text) for text in taken if text.isdigit()), default=0)

    def _manifest(self, name: str, version: int, signature: Signature, files: tuple[FileEntry, ...], origin: Origin) -> Manifest:
        return Manifest(
            name=name,
            version=version,
            signature=signature,
            files=files,
            created=datetime.now(UTC),
            parent=origin.parent,
            job=origin.job,
            upload_id=origin.upload_id,
            recipe=origin.recipe or {},
            report=origin.report or {},
        )

    def _unknown(self, name: str, version: int) -> str:
        versions = self.versions(name)
        if not versions:
            return f"no model {name!r}"
        return f"no version {version} of model {name!r}; there are {', '.join(map(str, versions))}"

    def _unknown_channel(self, wanted: Reference) -> str:
        if not self.versions(wanted.name):
            return f"no model {wanted.name!r}"
        channels = self.channels(wanted.name)
        return f"model {wanted.name!r} has no channel {wanted.channel!r}; there are: {', '.join(channels) or 'none'}"


def file_entry(folder: Path, path: Path) -> FileEntry:
    """Size and SHA-256 of a file below `folder`. Raises BadName, OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        size = os.fstat(file.fileno()).st_size
    return FileEntry(path=check_path(path.relative_to(folder).as_posix()), size_bytes=size, sha256=digest.hexdigest())


def _plain_files(folder: Path) -> list[Path]:
    """Every file below `folder` but the manifest, sorted. Raises BadName at a link: it could point out of the folder."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BadName(f"{path.relative_to(folder)} is not a plain file")
        if path.is_file() and path != folder / manifests.FILE_NAME:
            files.append(path)
    return files
