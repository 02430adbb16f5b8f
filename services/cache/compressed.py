"""A store that keeps large values compressed, where that makes them smaller."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import structlog
import zstandard

from services.cache.store import Entry, Namespace, Stats, Store

log = structlog.get_logger("hone.cache")

_PLAIN, _ZSTD = b"\0", b"\1"  # the first byte of a kept value
_LEVEL = 1  # the quickest of the usual ones: what is cached is often numbers, which a higher level hardly makes smaller
_OFF_LOOP_BYTES = 64 << 10  # of a batch: more than this would hold other calls up


class CompressedStore:
    """Values of `compress_bytes` and more are kept as Zstandard frames; 0 compresses none.

    Each value says how it is kept, so that the setting can change over what is there. What is no frame of ours is a miss, and is counted.
    """

    def __init__(self, store: Store, compress_bytes: int, max_value_bytes: int) -> None:
        """`max_value_bytes`: no frame is unpacked to more."""
        self._store = store
        self._compress_bytes = compress_bytes
        self._max_value_bytes = max_value_bytes
        self._corrupt = 0

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        kept = await self._store.get(namespace, keys)
        if sum(len(value) for value in kept if value is not None and value[:1] == _ZSTD) > _OFF_LOOP_BYTES:
            values = await asyncio.to_thread(self._unpack_all, kept)
        else:
            values = self._unpack_all(kept)
        broken = sum(value is None for value in values) - sum(value is None for value in kept)
        if broken:
            self._corrupt += broken
            log.warning("values that cannot be unpacked are misses", namespace=namespace, entries=broken)
        return values

    async def lives(self, namespace: str, keys: Sequence[bytes]) -> list[float]:
        return await self._store.lives(namespace, keys)

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        if sum(len(entry.value) for entry in entries if self._is_large(entry.value)) > _OFF_LOOP_BYTES:
            packed = await asyncio.to_thread(self._pack_all, entries)
        else:
            packed = self._pack_all(entries)
        return await self._store.put(namespace, packed, epoch=epoch)

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        await self._store.delete(namespace, keys)

    async def clear(self, namespace: str) -> int:
        return await self._store.clear(namespace)

    async def describe(self, namespace: str) -> Namespace:
        return await self._store.describe(namespace)

    async def configure(self, namespace: str, ttl_s: float | None) -> None:
        await self._store.configure(namespace, ttl_s)

    def stats(self) -> Stats:
        stats = self._store.stats()
        return replace(stats, corrupt=stats.corrupt + self._corrupt)

    def _is_large(self, value: bytes) -> bool:
        return 0 < self._compress_bytes <= len(value)

    def _pack_all(self, entries: Sequence[Entry]) -> list[Entry]:
        compressor = zstandard.ZstdCompressor(level=_LEVEL)  # one a batch: it must not be shared between threads
        return [replace(entry, value=self._packed(compressor, entry.value)) for entry in entries]

    def _packed(self, compressor: zstandard.ZstdCompressor, value: bytes) -> bytes:
        frame = compressor.compress(value) if self._is_large(value) else value
        return _ZSTD + frame if len(frame) < len(value) else _PLAIN + value

    def _unpack_all(self, kept: Sequence[bytes | None]) -> list[bytes | None]:
        decompressor = zstandard.ZstdDecompressor()
        return [None if value is None else self._unpacked(decompressor, value) for value in kept]

    def _unpacked(self, decompressor: zstandard.ZstdDecompressor, kept: bytes) -> bytes | None:
        """None for what was not packed here."""
        if kept[:1] == _PLAIN:
            return kept[1:]
        try:
            frame = kept[1:]
            if kept[:1] != _ZSTD or not 0 <= zstandard.frame_content_size(frame) <= self._max_value_bytes:
                return None
            return decompressor.decompress(frame)
        except zstandard.ZstdError:
            return None
