"""The gRPC door of the cache: checks, converts, and asks the store."""

import re
from collections.abc import Sequence
from datetime import timedelta

from google.protobuf import duration_pb2
from grpc.aio import ServicerContext
from hone.cache.v1 import cache_pb2, cache_pb2_grpc

from services.cache.settings import ENTRY_OVERHEAD_BYTES, CacheSettings
from services.cache.store import Entry, Store
from services.chassis import faults

SERVICE = cache_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name

_NAMESPACE = re.compile(r"[A-Za-z0-9._:/@-]{1,256}")
_MISS = cache_pb2.GetResult(status=cache_pb2.ITEM_STATUS_MISS)


class CacheServicer(cache_pb2_grpc.CacheServiceServicer):
    """`hone.cache.v1.CacheService` on any store."""

    def __init__(self, store: Store, settings: CacheSettings) -> None:
        self._store = store
        self._settings = settings
        # As many of the largest values as surely fit in one answer: a call never holds much more than that in memory.
        self._slice = max(1, settings.max_message_bytes // (settings.max_value_bytes + ENTRY_OVERHEAD_BYTES))

    async def Get(
        self, request: cache_pb2.GetRequest, context: ServicerContext[cache_pb2.GetRequest, cache_pb2.GetResponse]
    ) -> cache_pb2.GetResponse:
        self._check(request.namespace, "keys", len(request.keys))
        return cache_pb2.GetResponse(results=await self._look_up(request.namespace, request.keys))

    async def Put(
        self, request: cache_pb2.PutRequest, context: ServicerContext[cache_pb2.PutRequest, cache_pb2.PutResponse]
    ) -> cache_pb2.PutResponse:
        self._check(request.namespace, "entries", len(request.entries))
        entries = [Entry(entry.key, entry.value, self._ttl_s(entry, index)) for index, entry in enumerate(request.entries)]
        fitting = [entry for entry in entries if self._fits(entry)]
        taken = iter(await self._store.put(request.namespace, fitting) if fitting else ())
        return cache_pb2.PutResponse(statuses=[_put_status(next(taken) if self._fits(entry) else None) for entry in entries])

    async def Delete(
        self, request: cache_pb2.DeleteRequest, context: ServicerContext[cache_pb2.DeleteRequest, cache_pb2.DeleteResponse]
    ) -> cache_pb2.DeleteResponse:
        self._check(request.namespace, "keys", len(request.keys))
        if request.keys:
            await self._store.delete(request.namespace, request.keys)
        return cache_pb2.DeleteResponse(statuses=[cache_pb2.ITEM_STATUS_OK] * len(request.keys))

    async def Clear(
        self, request: cache_pb2.ClearRequest, context: ServicerContext[cache_pb2.ClearRequest, cache_pb2.ClearResponse]
    ) -> cache_pb2.ClearResponse:
        self._check(request.namespace, "", 0)
        return cache_pb2.ClearResponse(entries=await self._store.clear(request.namespace))

    async def GetStats(
        self, request: cache_pb2.GetStatsRequest, context: ServicerContext[cache_pb2.GetStatsRequest, cache_pb2.GetStatsResponse]
    ) -> cache_pb2.GetStatsResponse:
        stats = self._store.stats()
        return cache_pb2.GetStatsResponse(
            hits=stats.hits,
            misses=stats.misses,
            puts=stats.puts,
            deletes=stats.deletes,
            evictions=stats.evictions,
            corrupt=stats.corrupt,
            entries=stats.entries,
            bytes=stats.bytes,
            limits=_limits(self._settings),
        )

    def _check(self, namespace: str, field: str, count: int) -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise faults.InvalidField("namespace", 'must be 1 to 256 characters out of letters, digits and "._:/@-"')
        if count > self._settings.max_batch:
            raise faults.InvalidField(field, f"{count} items are more than the {self._settings.max_batch} of one batch")

    def _ttl_s(self, entry: cache_pb2.Entry, index: int) -> float:
        if not entry.HasField("ttl"):
            return self._settings.default_ttl_s
        ttl_s = entry.ttl.seconds + entry.ttl.nanos / 1e9
        if not 0 < ttl_s <= self._settings.max_ttl_s:
            raise faults.InvalidField(f"entries[{index}].ttl", f"{ttl_s:g} s is not above 0 and at most {self._settings.max_ttl_s:g} s")
        return ttl_s

    def _fits(self, entry: Entry) -> bool:
        return 0 < len(entry.key) <= self._settings.max_key_bytes and len(entry.value) <= self._settings.max_value_bytes

    async def _look_up(self, namespace: str, keys: Sequence[bytes]) -> list[cache_pb2.GetResult]:
        """A value that no longer fits in the answer is a miss, as a cache may: failing the call would fail its neighbours."""
        results: list[cache_pb2.GetResult] = []
        room_bytes = self._settings.max_message_bytes
        for begin in range(0, len(keys), self._slice):
            asked = keys[begin : begin + self._slice]
            for value in await self._store.get(namespace, asked) if room_bytes > 0 else [None] * len(asked):
                room_bytes -= ENTRY_OVERHEAD_BYTES + len(value or b"")
                results.append(
                    _MISS if value is None or room_bytes < 0 else cache_pb2.GetResult(status=cache_pb2.ITEM_STATUS_OK, value=value)
                )
        return results


def _put_status(taken: bool | None) -> cache_pb2.ItemStatus.ValueType:
    if taken is None:
        return cache_pb2.ITEM_STATUS_TOO_LARGE
    return cache_pb2.ITEM_STATUS_OK if taken else cache_pb2.ITEM_STATUS_NOT_STORED


def _limits(settings: CacheSettings) -> cache_pb2.Limits:
    return cache_pb2.Limits(
        max_bytes=settings.max_bytes,
        max_value_bytes=settings.max_value_bytes,
        max_key_bytes=settings.max_key_bytes,
        max_batch=settings.max_batch,
        default_ttl=_duration(settings.default_ttl_s),
        max_ttl=_duration(settings.max_ttl_s),
    )


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration
