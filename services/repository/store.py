"""The repository: `models/NAME/VERSION/` sealed and immutable, `models/NAME/channels/` pointing at them."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.repository import manifest as manifests
from services.repository.channels import Channels
from services.repository.manifest import FileEntry, Manifest, Signature
from services.repository.references import BadName, Reference, check_channel, check_name, check_path, parse
from services.repository.traffic import BadTraffic, Plan, Splits, Traffic, UnknownArm, check_alike, users
from services.repository.versions import Damaged as Damaged
from services.repository.versions import Versions

CHUNK_BYTES = 1 << 20


class UnknownModel(LookupError):
    """No such model, version or channel."""


class InUse(Exception):
    """A channel points at the version, or a channel's split uses it."""


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
        self._staging = self.root / "staging"
        self._versions = Versions(self.root / "models", self._staging, "model", Manifest.read, UnknownModel)

    # Reading

    def names(self) -> list[str]:
        """Models that have a version, sorted."""
        return self._versions.names()

    def versions(self, name: str) -> list[int]:
        """Sealed versions of a model, ascending; empty for an unknown one."""
        return self._versions.numbers(name)

    def manifest(self, name: str, version: int) -> Manifest:
        """Raises UnknownModel, or Damaged where the manifest cannot be read."""
        return self._versions.manifest(name, version)

    def folder(self, name: str, version: int) -> Path:
        return self._versions.folder(name, version)

    def channels(self, name: str) -> dict[str, int]:
        """Channel to version."""
        return self._channels(name).read()

    def channels_changed_ns(self, name: str) -> int:
        """A number that grows when a channel of the model moves or its split changes; one stat call."""
        return self._channels(name).changed_ns()

    def traffic(self, name: str) -> dict[str, Traffic]:
        """Channel to the split of its calls, for channels that have one: moving the channel off the control's version ends it."""
        channels = self.channels(name)
        found = self._splits(name).read().items()
        return {channel: traffic for channel, traffic in found if traffic.plan and traffic.plan.control.version == channels.get(channel)}

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
        check_files(self.folder(name, version), self.manifest(name, version).files, f"{name}@{version}")

    # Writing

    def staging(self) -> AbstractContextManager[Path]:
        """An empty folder to build a version in, on the same disk; what was not sealed is removed at the end."""
        return self._versions.staged()

    def sweep(self) -> None:
        """Removes what a killed process left in staging. For the one writing process, at its start."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def seal(self, staged: Path, name: str, signature: Signature, origin: Origin) -> Manifest:
        """Makes the staged folder the model's next version, atomically.

        Raises:
            BadName: the name, or a file's path, breaks its rule.
            OSError: the disk is full or fails; nothing is visible then.
        """
        check_name(name)
        files = tuple(file_entry(staged, path) for path in _plain_files(staged))
        return self._versions.seal(staged, name, lambda version: self._manifest(name, version, signature, files, origin))

    def set_channel(self, name: str, channel: str, version: int) -> Manifest:
        """Points a channel at a version, which then answers all of its calls: a split ends. Raises BadName, UnknownModel."""
        check_channel(channel)
        with self._versions.changing(name):
            found = self.manifest(name, version)
            self._point(name, channel, version)
        return found

    def roll_back(self, name: str, channel: str) -> Manifest:
        """Points a channel at the version before; a split ends. Raises BadName, UnknownModel, NoEarlierVersion."""
        wanted = Reference(check_name(name), channel=check_channel(channel))
        with self._versions.changing(name):
            self.resolve(wanted)
            version = self._channels(name).roll_back(channel)
            self._splits(name).clear(channel)
            return self.manifest(name, version)

    def set_traffic(self, name: str, channel: str, plan: Plan, *, expected: int = 0) -> Traffic:
        """Splits a channel's calls; setting the plan that is set already changes nothing.

        Args:
            plan: its first arm is the control and has the version that the channel points at.
            expected: the revision that the caller has read; 0 replaces whatever there is.

        Raises:
            BadName, UnknownModel: no such channel or version.
            BadTraffic: the plan contradicts itself, or its versions do not answer alike.
            StaleRevision: another revision than `expected` is the last.
        """
        wanted = Reference(check_name(name), channel=check_channel(channel))
        plan.check()
        with self._versions.changing(name):
            control = self.resolve(wanted).manifest
            if plan.control.version != control.version:
                raise BadTraffic(f"arms[0].version: the control must be version {control.version}, which {wanted} points at")
            for field, version in plan.fields():
                check_alike(control.signature, self.manifest(name, version).signature, field)
            return self._splits(name).set(channel, plan, expected=expected)

    def clear_traffic(self, name: str, channel: str) -> None:
        """Ends a channel's split, if it has one: what the channel points at answers all of its calls. Raises BadName, UnknownModel."""
        check_channel(channel)
        with self._versions.changing(name):
            self._splits(name).clear(channel)

    def promote_arm(self, name: str, channel: str, arm: str) -> Manifest:
        """Points a channel at an arm's version and ends the split. Raises BadName, UnknownModel, UnknownArm."""
        wanted = Reference(check_name(name), channel=check_channel(channel))
        with self._versions.changing(name):
            traffic = self.traffic(name).get(channel)
            if traffic is None or traffic.plan is None:
                raise UnknownArm(f"the calls of {wanted} are not split")
            found = self.manifest(name, traffic.plan.arm(arm).version)
            self._point(name, channel, found.version)
        return found

    def _point(self, name: str, channel: str, version: int) -> None:
        """The channel first: killed in between, the split has ended all the same, since its control is not the channel's version."""
        self._channels(name).point(channel, version)
        self._splits(name).clear(channel)

    def delete(self, name: str, version: int) -> None:
        """Removes a version; its number is never given again. Raises UnknownModel, InUse."""
        self._versions.delete(name, version, release=lambda: self._release(name, version))

    def _release(self, name: str, version: int) -> None:
        """Drops a version from the channels' histories. Raises InUse."""
        pointing = [channel for channel, at in self.channels(name).items() if at == version]
        if pointing:
            raise InUse(f"{name}@{version} is what channel {', '.join(pointing)} points at")
        if split := users(self.traffic(name), version):
            raise InUse(f"{name}@{version} is used by the traffic of channel {', '.join(split)}")
        self._channels(name).forget(version)

    def find(self, name: str, *, upload_id: str = "", job: str = "") -> Manifest | None:
        """The version that an upload or a job made, if it did."""
        return self._versions.newest(name, lambda found: bool((upload_id and found.upload_id == upload_id) or (job and found.job == job)))

    def _channels(self, name: str) -> Channels:
        return Channels(self._versions.home(name) / "channels")

    def _splits(self, name: str) -> Splits:
        return Splits(self._versions.home(name) / "channels")

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

    def _unknown_channel(self, wanted: Reference) -> str:
        if not self.versions(wanted.name):
            return f"no model {wanted.name!r}"
        channels = self.channels(wanted.name)
        return f"model {wanted.name!r} has no channel {wanted.channel!r}; there are: {', '.join(channels) or 'none'}"


def check_files(folder: Path, entries: Iterable[FileEntry], reference: str) -> None:
    """Reads every file below `folder` against its digest. Raises Damaged."""
    for entry in entries:
        try:
            found = file_entry(folder, folder / check_path(entry.path))
        except FileNotFoundError:
            raise Damaged(f"{reference}: {entry.path} is missing") from None
        if found != entry:
            raise Damaged(f"{reference}: {entry.path} has digest {found.sha256}, its manifest says {entry.sha256}")


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
