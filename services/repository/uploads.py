"""Unfinished uploads: files that arrive in chunks, kept until they are whole, so that a broken upload can go on."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict

from services.repository.atomic import locked, replace_file
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
    """Every upload under `root/ID/`: `header.json` and `files/`, which is `finished/` once nothing may be written any more.

    Streams of one upload may run at once: each change holds the lock of `root/ID/`. `field` is where a request names its
    files, for faults.
    """

    def __init__(self, root: Path, limits: UploadLimits, field: str = "header.files") -> None:
        self._root = root
        self._limits = limits
        self._field = field

    def begin(self, upload_id: str, name: str, files: Sequence[FileEntry]) -> "Upload":
        """Opens a new upload, or an unfinished one again. Raises BadUpload, UploadTooLarge."""
        folder = self._folder(upload_id)
        self._check(files)
        header = _Header(name=name, files=tuple(files))
        folder.mkdir(parents=True, exist_ok=True)
        with _changing(folder):
            known = _header(folder)
            if known is not None and known != header:
                raise BadUpload("header.upload_id", f"{upload_id!r} was begun with another name or other files")
            if known is None:
                replace_file(folder / "header.json", header.model_dump_json().encode())
            (folder / "files").mkdir(exist_ok=True)
        return Upload(folder, {entry.path: entry for entry in files}, self._field)

    def received_bytes(self, upload_id: str) -> dict[str, int]:
        """For each file begun, its bytes so far. Raises UnknownUpload, BadUpload."""
        folder = self._folder(upload_id)
        with suppress(FileNotFoundError), locked(folder):
            if _header(folder) is not None:
                return _sizes(folder / "files") or _sizes(folder / "finished")
        raise UnknownUpload(f"no unfinished upload {upload_id!r}")

    def forget(self, upload_id: str) -> None:
        """Removes an upload's files."""
        folder = self._folder(upload_id)
        with suppress(FileNotFoundError), locked(folder):
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, older_than_epoch_s: float) -> None:
        """Removes uploads that nothing has touched since, and reopens those that a killed process had finished but not forgotten.

        For the one writing process, at its start.
        """
        for folder in self._root.glob("*"):
            # A folder's own time stands still while its files grow.
            if max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))) < older_than_epoch_s:
                shutil.rmtree(folder, ignore_errors=True)
            elif (folder / "finished").is_dir():
                _reopen(folder)

    def _folder(self, upload_id: str) -> Path:
        if not UPLOAD_ID.fullmatch(upload_id):
            raise BadUpload("header.upload_id", "must be 1 to 64 letters, digits, '-' or '_'")
        return self._root / upload_id

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


def _header(folder: Path) -> _Header | None:
    try:
        return _Header.model_validate_json((folder / "header.json").read_bytes())
    except FileNotFoundError:
        return None


def _sizes(files: Path) -> dict[str, int]:
    """Bytes by path, of every file below `files`."""
    return {path.relative_to(files).as_posix(): path.stat().st_size for path in files.rglob("*") if path.is_file()}


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """One change at a time to an upload. Raises BadUpload where it is forgotten already."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder))
        except FileNotFoundError:
            raise _finished(folder) from None
        yield


def _finished(folder: Path) -> BadUpload:
    return BadUpload("header.upload_id", f"{folder.name!r} was finished meanwhile by another stream")


def _reopen(folder: Path) -> None:
    """Makes a finished upload's files writable again, in place of what came since."""
    shutil.rmtree(folder / "files", ignore_errors=True)
    (folder / "finished").rename(folder / "files")


class Upload:
    """An upload being received, through one of its streams."""

    def __init__(self, folder: Path, entries: dict[str, FileEntry], field: str) -> None:
        self._folder = folder
        self._files = folder / "files"
        self._entries = entries
        self._field = field

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Appends a chunk; repeating bytes that have arrived already is allowed. Raises BadUpload, OSError."""
        entry = self._entries.get(path)
        if entry is None:
            raise BadUpload("chunk.path", f"{path[:200]!r} is not among header.files")
        if offset < 0 or offset + len(data) > entry.size_bytes:
            raise BadUpload("chunk.offset", f"{path}: bytes {offset} to {offset + len(data)} lie outside the declared {entry.size_bytes}")
        with self._open():
            self._append(path, offset, data)

    def check_complete(self) -> None:
        """Raises BadUpload where bytes are missing, or another stream has finished the upload."""
        with self._open():
            self._check_complete()

    def finish(self) -> Path:
        """A folder of the files, once each has its size and digest; no stream writes to it any more.

        Raises BadUpload; a file with a wrong digest is dropped, and the upload open again.
        """
        finished = self._folder / "finished"
        with self._open():
            self._check_complete()
            self._files.rename(finished)  # before they are read: the digests are those of the bytes that are handed out
        for path, entry in self._entries.items():
            found = file_entry(finished, finished / path)
            if found.sha256 != entry.sha256:
                self._drop(finished / path)
                raise BadUpload(self._field, f"{path}: digest is {found.sha256}, the header says {entry.sha256}")
        return finished

    @contextmanager
    def _open(self) -> Iterator[None]:
        """While its files may change. Raises BadUpload once they may not."""
        with _changing(self._folder):
            if not self._files.is_dir():
                raise _finished(self._folder)
            yield

    def _append(self, path: str, offset: int, data: bytes) -> None:
        target = self._files / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()  # not "wb" for a new file: it would cut off what another stream has written
        with target.open("r+b") as file:
            file.seek(0, 2)
            if offset > file.tell():
                raise BadUpload("chunk.offset", f"{path}: {offset} leaves a gap, {file.tell()} bytes have arrived")
            file.seek(offset)
            file.write(data)

    def _check_complete(self) -> None:
        for path, entry in self._entries.items():
            target = self._files / path
            if entry.size_bytes == 0 and not target.exists():
                self._append(path, 0, b"")
            arrived = target.stat().st_size if target.is_file() else 0
            if arrived != entry.size_bytes:
                raise BadUpload("chunk.data", f"{path}: {arrived} of {entry.size_bytes} bytes have arrived")

    def _drop(self, wrong: Path) -> None:
        """Resuming on top of wrong bytes could never succeed."""
        with _changing(self._folder):
            wrong.unlink()
            _reopen(self._folder)
