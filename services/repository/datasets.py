"""The repository's datasets: `datasets/NAME/VERSION/`, sealed and immutable as models are, without channels."""

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from services.repository.dataset_manifest import Contents, DatasetFormat, DatasetManifest
from services.repository.references import BadName, check_name, parse
from services.repository.store import check_files, file_entry
from services.repository.versions import Versions

NOUN = "dataset"


class UnknownDataset(LookupError):
    """No such dataset or version."""


@dataclass(frozen=True, slots=True)
class ResolvedDataset:
    """What a reference stands for now; `path` is the file that holds the rows."""

    manifest: DatasetManifest
    path: Path


class Datasets:
    """Datasets on a disk that several processes may share: readers see whole versions or none.

    `root` is the repository's, models and datasets beside each other; it may be read-only for a process that only reads.
    """

    def __init__(self, root: Path) -> None:
        resolved = root.resolve()
        # Staging is the models' too, so that the repository's sweep clears both.
        self._versions = Versions(resolved / "datasets", resolved / "staging", NOUN, DatasetManifest.read, UnknownDataset)

    # Reading

    def names(self) -> list[str]:
        """Datasets that have a version, sorted."""
        return self._versions.names()

    def versions(self, name: str) -> list[int]:
        """Sealed versions of a dataset, ascending; empty for an unknown one. Raises BadName."""
        return self._versions.numbers(name)

    def manifest(self, name: str, version: int) -> DatasetManifest:
        """Raises BadName, UnknownDataset, or Damaged where the manifest cannot be read."""
        return self._versions.manifest(name, version)

    def folder(self, name: str, version: int) -> Path:
        return self._versions.folder(name, version)

    def resolve(self, reference: str) -> ResolvedDataset:
        """Finds `NAME@VERSION`, or the newest version of `NAME`. Raises BadName, UnknownDataset, Damaged."""
        name, version = parse_reference(reference)
        if version is None:
            version = max(self.versions(name), default=None)
        if version is None:
            raise UnknownDataset(f"no dataset {name!r}")
        manifest = self.manifest(name, version)
        return ResolvedDataset(manifest, self.folder(name, version) / manifest.format.file_name)

    def find(self, name: str, upload_id: str) -> DatasetManifest | None:
        """The version that an upload made, if it did."""
        return self._versions.newest(name, lambda found: found.upload_id == upload_id)

    def verify(self, name: str, version: int) -> None:
        """Reads a version's file against its digest. Raises UnknownDataset, Damaged."""
        manifest = self.manifest(name, version)
        check_files(self.folder(name, version), [manifest.file], manifest.reference)

    # Writing

    def staging(self) -> AbstractContextManager[Path]:
        """An empty folder to build a version in, on the same disk; what was not sealed is removed at the end."""
        return self._versions.staged()

    def seal(self, staged: Path, name: str, format: DatasetFormat, contents: Contents, upload_id: str = "") -> DatasetManifest:  # noqa: A002
        """Makes the staged folder, which holds the file of its format alone, the dataset's next version, atomically.

        Raises:
            BadName: the name breaks its rule, or the folder holds another file.
            OSError: the disk is full or fails; nothing is visible then.
        """
        check_name(name, NOUN)
        path = staged / format.file_name
        if list(staged.iterdir()) != [path] or path.is_symlink() or not path.is_file():
            raise BadName(f"a dataset is one plain file {format.file_name}")
        entry = file_entry(staged, path)

        def describe(version: int) -> DatasetManifest:
            return DatasetManifest(
                name=name,
                version=version,
                format=format,
                file=entry,
                contents=contents,
                created=datetime.now(UTC),
                upload_id=upload_id,
            )

        return self._versions.seal(staged, name, describe)

    def delete(self, name: str, version: int) -> None:
        """Removes a version; its number is never given again. Raises BadName, UnknownDataset."""
        self._versions.delete(name, version)


def parse_reference(text: str) -> tuple[str, int | None]:
    """Name and version of `NAME@VERSION`, or of `NAME`, which is the newest. Raises BadName."""
    name = re.split("[@:]", text, maxsplit=1)[0]
    check_name(name, NOUN)
    if text[len(name) :].startswith(":"):
        raise BadName(f"dataset {name!r} has no channels: write NAME or NAME@VERSION")
    return name, parse(text).version
