"""Unfinished uploads: files that arrive in chunks, kept until they are whole, so that a broken upload can go on."""

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict

from services.repository.atomic import replace_file
from services.repository.manifest import FILE_NAME, FileEntry
from services.repository.references import BadName, check_path
from services.repository.store import file_entry

UPLOAD_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class BadUpload(ValueError):
    """The upload contradicts itself; `field` names where."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")


class UploadTooLarge(Exception):
    """The upload is over the size limit."""


class UnknownUpload(LookupError):
    """No unfinished upload under this id."""


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True)
class UploadLimits:
    max_bytes: int
    max_files: int = 64


class Uploads:
    """Every upload under `root/ID/`: `header.json` and `files/`. `field` is where a request names its files, for faults."""

    def __init__(self, root: Path, limits: UploadLimits, field: str = "header.files") -> None:
        self._root = root
        self._limits = limits
        self._field = field

    def begin(self, upload_id: str, name: str, files: Sequence[FileEntry]) -> "Upload":
        """Opens a new upload, or an unfinished one again. Raises BadUpload, UploadTooLarge."""
        folder = self._folder(upload_id)
        self._check(files)
        header = _Header(name=name, files=tuple(files))
        known = self._header(folder)
        if known is not None and known != header:
            raise BadUpload("header.upload_id", f"{upload_id!r} was begun with another name or other files")
        if known is None:
            replace_file(folder / "header.json", header.model_dump_json().encode())
        (folder / "files").mkdir(exist_ok=True)
        return Upload(folder / "files", {entry.path: entry for entry in files}, self._field)

    def received_bytes(self, upload_id: str) -> dict[str, int]:
        """For each file begun, its bytes so far. Raises UnknownUpload, BadUpload."""
        folder = self._folder(upload_id)
        if self._header(folder) is None:
            raise UnknownUpload(f"no unfinished upload {upload_id!r}")
        files = folder / "files"
        return {path.relative_to(files).as_posix(): path.stat().st_size for path in files.rglob("*") if path.is_file()}

    def forget(self, upload_id: str) -> None:
        """Removes an upload's files."""
        shutil.rmtree(self._folder(upload_id), ignore_errors=True)

    def sweep(self, older_than_epoch_s: float) -> None:
        """Removes uploads that nothing has touched since."""
        for folder in self._root.glob("*"):
            # A folder's own time stands still while its files grow.
            if max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))) < older_than_epoch_s:
                shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, upload_id: str) -> Path:
        if not UPLOAD_ID.fullmatch(upload_id):
            raise BadUpload("header.upload_id", "must be 1 to 64 letters, digits, '-' or '_'")
        return self._root / upload_id

    def _header(self, folder: Path) -> _Header | None:
        try:
            return _Header.model_validate_json((folder / "header.json").read_bytes())
        except FileNotFoundError:
            return None

    def _check(self, files: Sequence[FileEntry]) -> None:
        if not 0 < len(files) <= self._limits.max_files:
            raise BadUpload(self._field, f"must be 1 to {self._limits.max_files} files, not {len(files)}")
        _check_paths([entry.path for entry in files], self._field)
        total = sum(entry.size_bytes for entry in files)
        if total > self._limits.max_bytes:
            raise UploadTooLarge(f"{self._field}: {total} bytes are over the limit of {self._limits.max_bytes}")


def _check_paths(paths: Sequence[str], files_field: str) -> None:
    """Raises BadUpload."""
    counts = Counter(paths)
    for index, path in enumerate(paths):
        field = f"{files_field}[{index}].path"
        try:
            check_path(path)
        except BadName as error:
            raise BadUpload(field, str(error)) from error
        if counts[path] > 1 or path == FILE_NAME:
            raise BadUpload(field, f"{path!r} is named twice or reserved")
        if any(parent.as_posix() in counts for parent in PurePosixPath(path).parents):
            raise BadUpload(field, f"{path!r} lies below another file")


class Upload:
    """An upload being received. Not for two writers at once."""

    def __init__(self, folder: Path, entries: dict[str, FileEntry], field: str) -> None:
        self._folder = folder
        self._entries = entries
        self._field = field

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Appends a chunk; repeating bytes that have arrived already is allowed. Raises BadUpload, OSError."""
        entry = self._entries.get(path)
        if entry is None:
            raise BadUpload("chunk.path", f"{path[:200]!r} is not among header.files")
        if offset < 0 or offset + len(data) > entry.size_bytes:
            raise BadUpload("chunk.offset", f"{path}: bytes {offset} to {offset + len(data)} lie outside the declared {entry.size_bytes}")
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()  # not "wb" for a new file: what a stream that broke still writes must not be cut off
        with target.open("r+b") as file:
            file.seek(0, 2)
            if offset > file.tell():
                raise BadUpload("chunk.offset", f"{path}: {offset} leaves a gap, {file.tell()} bytes have arrived")
            file.seek(offset)
            file.write(data)

    def check_complete(self) -> None:
        """Raises BadUpload where bytes are missing."""
        for path, entry in self._entries.items():
            target = self._folder / path
            if entry.size_bytes == 0 and not target.exists():
                self.write(path, 0, b"")
            arrived = target.stat().st_size if target.is_file() else 0
            if arrived != entry.size_bytes:
                raise BadUpload("chunk.data", f"{path}: {arrived} of {entry.size_bytes} bytes have arrived")

    def finish(self) -> Path:
        """The folder, once every file has its size and digest. Raises BadUpload; a file with a wrong digest is dropped."""
        self.check_complete()
        for path, entry in self._entries.items():
            found = file_entry(self._folder, self._folder / path)
            if found.sha256 != entry.sha256:
                (self._folder / path).unlink()  # resuming on top of wrong bytes could never succeed
                raise BadUpload(self._field, f"{path}: digest is {found.sha256}, the header says {entry.sha256}")
        return self._folder
