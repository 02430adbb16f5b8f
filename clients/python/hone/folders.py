"""A model folder on the caller's disk, to and from the wire."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from hone.repository.v1 import models_pb2 as pb

CHUNK_BYTES = 1 << 20


def header(folder: Path, name: str, task: "pb.Task.ValueType", channels: Sequence[str]) -> pb.UploadHeader:
    """Describes the folder's visible files.

    The upload's id follows from name and contents, so pushing the same folder again goes on with a broken upload, or answers the
    version that it became.

    Raises:
        FileNotFoundError: no such folder, or no file in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no file")
    files = [_file(folder, path) for path in paths]
    content = "\n".join([name, str(task), *(f"{entry.path} {entry.sha256}" for entry in files)])
    upload_id = hashlib.sha256(content.encode()).hexdigest()[:40]
    return pb.UploadHeader(upload_id=upload_id, name=name, task=task, files=files, channels=channels)


def chunks(folder: Path, head: pb.UploadHeader, received: Mapping[str, int]) -> Iterator[pb.UploadModelRequest]:
    """The header, then what has not been received."""
    yield pb.UploadModelRequest(header=head)
    for entry in head.files:
        with (folder / entry.path).open("rb") as file:
            offset = file.seek(min(received.get(entry.path, 0), entry.size_bytes))
            while data := file.read(CHUNK_BYTES):
                yield pb.UploadModelRequest(chunk=pb.FileChunk(path=entry.path, offset=offset, data=data))
                offset += len(data)


class FolderWriter:
    """Writes a download below `folder` and checks every file's digest at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model = pb.ModelVersion()

    def take(self, response: pb.DownloadModelResponse) -> int:
        """Returns the bytes written. Raises ValueError for a path that leaves the folder."""
        if response.WhichOneof("part") == "model":
            self._model = response.model
            for entry in self._model.files:
                self._target(entry.path).parent.mkdir(parents=True, exist_ok=True)
                self._target(entry.path).write_bytes(b"")
            return 0
        with self._target(response.chunk.path).open("r+b") as file:
            file.seek(response.chunk.offset)
            return file.write(response.chunk.data)

    def finish(self) -> pb.ModelVersion:
        """Raises ValueError naming a file whose bytes are not those that the server described."""
        for entry in self._model.files:
            if _file(self._folder, self._target(entry.path)).sha256 != entry.sha256:
                raise ValueError(f"{entry.path}: the digest is not the one in the manifest")
        return self._model

    def _target(self, path: str) -> Path:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise ValueError(f"{path!r} leaves the folder")
        return self._folder.joinpath(*parts)


def _file(folder: Path, path: Path) -> pb.File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return pb.File(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=digest)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
