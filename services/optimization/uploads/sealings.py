"""Uploads that become versions: once each, whatever happens to the connections that ask for it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from services.optimization.uploads.disk_work import on_disk
from services.repository.manifest import FileEntry
from services.repository.uploads import BadUpload, Upload, Uploads

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Announced:
    """What an upload's header tells of it."""

    upload_id: str
    name: str
    files: Sequence[FileEntry]


class Sealings(Generic[M]):
    """A sealing goes on when its caller's connection breaks: who comes back gets the result.

    Args:
        uploads: where what arrives is kept until it is whole.
        find: the version that an upload made, by name and upload id; None where it made none.
    """

    def __init__(self, uploads: Uploads, find: Callable[[str, str], M | None]) -> None:
        self._uploads = uploads
        self._find = find
        self._running: dict[tuple[str, str], asyncio.Task[M]] = {}  # by name and upload id

    async def version(self, announced: Announced, receive: Callable[[Upload], Awaitable[None]], seal: Callable[[Path], M]) -> M:
        """What the upload became, or becomes now by this stream or by a faster one.

        Args:
            receive: writes what this stream brings.
            seal: makes a version of the folder of whole files, which no stream writes to any more; it runs off the event loop.

        Raises BadUpload, UploadTooLarge, Overloaded for a full disk, and what `receive` and `seal` raise.
        """
        made = await self._made(announced)
        if made is not None:
            return made
        try:
            upload = await on_disk(self._uploads.begin, announced.upload_id, announced.name, announced.files)
            await receive(upload)
            # A stream whose caller has gone ends like a finished one: it must not be sealed, nor its fault told to who comes back.
            await on_disk(upload.check_complete)
        except BadUpload:
            made = await self._made(announced)
            if made is None:
                raise
            return made
        return await self._once(announced, partial(self._seal, announced, upload, seal))

    async def _made(self, announced: Announced) -> M | None:
        """The version that the upload became, or is becoming, if it was finished before."""
        running = self._running.get((announced.name, announced.upload_id))
        if running is not None:
            return await asyncio.shield(running)
        return await on_disk(self._find, announced.name, announced.upload_id) if announced.upload_id else None

    async def _once(self, announced: Announced, work: Callable[[], M]) -> M:
        """The result of `work`, which starts only where none runs for the upload."""
        key = (announced.name, announced.upload_id)
        if key not in self._running:
            task = self._running[key] = asyncio.ensure_future(on_disk(work))
            task.add_done_callback(lambda _: self._running.pop(key))
        return await asyncio.shield(self._running[key])

    def _seal(self, announced: Announced, upload: Upload, seal: Callable[[Path], M]) -> M:
        """What `seal` refuses is dropped, since resuming could not mend it."""
        made = self._find(announced.name, announced.upload_id)  # a stream that began before the upload was sealed may end after
        if made is not None:
            self._uploads.forget(announced.upload_id)
            return made
        folder = upload.finish()  # outside of the try: a wrong digest leaves the upload open
        try:
            return seal(folder)
        finally:
            self._uploads.forget(announced.upload_id)
