"""The gRPC door of the cache: checks, converts, and asks the store."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta

from google.protobuf import duration_pb2
from grpc.aio import ServicerContext
from hone.cache.v1 import cache_pb2, cache_pb2_grpc

from services.cache.invalidations import AnnouncedStore, Changed, Cleared, Event, Invalidations
from services.cache.leases import HELD, Leases
from services.cache.settings import CacheSettings
from services.cache.single_flight import Limits, Outcome, SingleFlight
from services.cache.store import Entry, Stats, Store
from services.chassis import faults

SERVICE = cache_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name

_NAMESPACE = re.compile(r"[A-Za-z0-9._:/@-]{1,256}")
# How many answers' worth of the largest values a call may hold while it looks up. With one, a batch of small values would be asked for in
# several round trips, since their sizes are not known before; without a bound, one call could take all memory.
_ANSWERS_AT_A_TIME = 4
_ANSWER_MARGIN_S = 0.01  # for an answer on its way to a caller that waits until its deadline
_MISS = cache_pb2.GetResult(status=cache_pb2.ITEM_STATUS_MISS)
_LEASED = cache_pb2.GetResult(status=cache_pb2.ITEM_STATUS_LEASED)
_STATUSES = {
    Outcome.STORED: cache_pb2.ITEM_STATUS_OK,
    Outcome.NOT_STORED: cache_pb2.ITEM_STATUS_NOT_STORED,
    Outcome.LEASE_LOST: cache_pb2.ITEM_STATUS_LEASE_LOST,
}


class CacheServicer(cache_pb2_grpc.CacheServiceServicer):
    """`hone.cache.v1.CacheService` on any store."""

    def __init__(
        self,
        store: Store,
        settings: CacheSettings,
        leases: Leases,
        *,
        unmetered: Store | None = None,
        invalidations: Invalidations | None = None,
    ) -> None:
        """`unmetered` is `store` without its meter, where it has one; the second look of a call that waited goes there.

        `invalidations` are given where not only this process changes the store.
        """
        self._settings = settings
        self._invalidations = invalidations or Invalidations(settings.max_untold_keys)
        self._store = AnnouncedStore(store, self._invalidations)
        self._flights = SingleFlight(self._store, unmetered or store, leases, _limits_of_a_call(settings))

    def stats(self) -> Stats:
        return self._flights.stats()

    def end_streams(self) -> None:
        """Ends what would go on for ever: watching."""
        self._invalidations.end()

    async def Get(
        self, request: cache_pb2.GetRequest, context: ServicerContext[cache_pb2.GetRequest, cache_pb2.GetResponse]
    ) -> cache_pb2.GetResponse:
        self._check(request.namespace, "keys", len(request.keys))
        if request.HasField("lease"):
            lease_s = _seconds(request.lease, "lease", self._settings.max_lease_s)
            found = await self._flights.get_or_lease(request.namespace, request.keys, lease_s, self._wait_s(request, context))
            response = _response(request.keys, found.values, found.leases)
        elif request.HasField("wait"):
            raise faults.InvalidField("wait", "goes with a lease")
        else:
            response = _response(request.keys, await self._flights.get(request.namespace, request.keys), {})
        if request.tell_ttl_left:
            _tell_lives(response, await self._store.lives(request.namespace, request.keys))
        return response

    async def Put(
        self, request: cache_pb2.PutRequest, context: ServicerContext[cache_pb2.PutRequest, cache_pb2.PutResponse]
    ) -> cache_pb2.PutResponse:
        self._check(request.namespace, "entries", len(request.entries))
        default_ttl_s = await self._default_ttl_s(request)
        entries = [Entry(entry.key, entry.value, self._ttl_s(entry, index, default_ttl_s)) for index, entry in enumerate(request.entries)]
        leases = {entry.key: entry.lease for entry in request.entries if entry.lease}
        outcomes = iter(await self._flights.put(request.namespace, [entry for entry in entries if self._fits(entry)], leases))
        return cache_pb2.PutResponse(
            statuses=[_STATUSES[next(outcomes)] if self._fits(entry) else cache_pb2.ITEM_STATUS_TOO_LARGE for entry in entries]
        )

    async def Delete(
        self, request: cache_pb2.DeleteRequest, context: ServicerContext[cache_pb2.DeleteRequest, cache_pb2.DeleteResponse]
    ) -> cache_pb2.DeleteResponse:
        self._check(request.namespace, "keys", len(request.keys))
        if request.keys:
            await self._flights.delete(request.namespace, request.keys)
        return cache_pb2.DeleteResponse(statuses=[cache_pb2.ITEM_STATUS_OK] * len(request.keys))

    async def Clear(
        self, request: cache_pb2.ClearRequest, context: ServicerContext[cache_pb2.ClearRequest, cache_pb2.ClearResponse]
    ) -> cache_pb2.ClearResponse:
        self._check(request.namespace, "", 0)
        return cache_pb2.ClearResponse(epoch=await self._store.clear(request.namespace))

    async def Release(
        self, request: cache_pb2.ReleaseRequest, context: ServicerContext[cache_pb2.ReleaseRequest, cache_pb2.ReleaseResponse]
    ) -> cache_pb2.ReleaseResponse:
        self._check(request.namespace, "leases", len(request.leases))
        await self._flights.release(request.namespace, {held.key: held.lease for held in request.leases if held.lease})
        return cache_pb2.ReleaseResponse()

    async def Configure(
        self, request: cache_pb2.ConfigureRequest, context: ServicerContext[cache_pb2.ConfigureRequest, cache_pb2.ConfigureResponse]
    ) -> cache_pb2.ConfigureResponse:
        self._check(request.namespace, "", 0)
        ttl_s = _seconds(request.ttl, "ttl", self._settings.max_ttl_s) if request.HasField("ttl") else None
        await self._store.configure(request.namespace, ttl_s)
        return cache_pb2.ConfigureResponse()

    async def Watch(
        self, request: cache_pb2.WatchRequest, context: ServicerContext[cache_pb2.WatchRequest, cache_pb2.WatchResponse]
    ) -> AsyncIterator[cache_pb2.WatchResponse]:
        _check_count("namespaces", len(request.namespaces), self._settings.max_batch)
        for index, namespace in enumerate(request.namespaces):
            _check_namespace(namespace, f"namespaces[{index}]")
        with self._invalidations.watching(request.namespaces) as watcher:
            yield cache_pb2.WatchResponse(began=cache_pb2.Began())
            async for event in watcher:
                yield _invalidation(event)

    async def GetStats(
        self, request: cache_pb2.GetStatsRequest, context: ServicerContext[cache_pb2.GetStatsRequest, cache_pb2.GetStatsResponse]
    ) -> cache_pb2.GetStatsResponse:
        stats = self.stats()
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
            leases=stats.leases,
            shared=stats.shared,
            leases_lost=stats.leases_lost,
        )

    def _check(self, namespace: str, field: str, count: int) -> None:
        _check_namespace(namespace, "namespace")
        _check_count(field, count, self._settings.max_batch)

    def _wait_s(self, request: cache_pb2.GetRequest, context: ServicerContext[cache_pb2.GetRequest, cache_pb2.GetResponse]) -> float:
        if not request.HasField("wait"):
            return 0
        left_s = context.time_remaining()
        wait_s = _as_seconds(request.wait)
        if wait_s < 0:
            raise faults.InvalidField("wait", f"{wait_s:g} s is below 0")
        return min(wait_s, (self._settings.default_deadline_s if left_s is None else left_s) - _ANSWER_MARGIN_S)

    async def _default_ttl_s(self, request: cache_pb2.PutRequest) -> float:
        """Of entries that bring none; the namespace is asked only where there are such."""
        if all(entry.HasField("ttl") for entry in request.entries):
            return self._settings.default_ttl_s
        ttl_s = (await self._store.describe(request.namespace)).ttl_s
        return self._settings.default_ttl_s if ttl_s is None else min(ttl_s, self._settings.max_ttl_s)

    def _ttl_s(self, entry: cache_pb2.Entry, index: int, default_ttl_s: float) -> float:
        return _seconds(entry.ttl, f"entries[{index}].ttl", self._settings.max_ttl_s) if entry.HasField("ttl") else default_ttl_s

    def _fits(self, entry: Entry) -> bool:
        return 0 < len(entry.key) <= self._settings.max_key_bytes and len(entry.value) <= self._settings.max_value_bytes


def _check_namespace(namespace: str, field: str) -> None:
    if not _NAMESPACE.fullmatch(namespace):
        raise faults.InvalidField(field, 'must be 1 to 256 characters out of letters, digits and "._:/@-"')


def _check_count(field: str, count: int, most: int) -> None:
    if count > most:
        raise faults.InvalidField(field, f"{count} items are more than the {most} of one batch")


def _response(keys: Sequence[bytes], values: Sequence[bytes | None], leases: Mapping[bytes, int]) -> cache_pb2.GetResponse:
    return cache_pb2.GetResponse(
        results=[
            cache_pb2.GetResult(status=cache_pb2.ITEM_STATUS_OK, value=value) if value is not None else _missing(leases.get(key))
            for key, value in zip(keys, values, strict=True)
        ]
    )


def _tell_lives(response: cache_pb2.GetResponse, lives_s: Sequence[float]) -> None:
    for result, life_s in zip(response.results, lives_s, strict=True):
        if result.status == cache_pb2.ITEM_STATUS_OK:
            result.ttl_left.FromNanoseconds(int(life_s * 1e9))


def _missing(lease: int | None) -> cache_pb2.GetResult:
    if lease is None:
        return _MISS
    return _LEASED if lease == HELD else cache_pb2.GetResult(status=cache_pb2.ITEM_STATUS_MISS, lease=lease)


def _invalidation(event: Event) -> cache_pb2.WatchResponse:
    match event:
        case Cleared(namespace):
            return cache_pb2.WatchResponse(cleared=namespace)
        case Changed(namespace, keys):
            return cache_pb2.WatchResponse(changed=cache_pb2.ChangedKeys(namespace=namespace, keys=keys))
        case _:
            return cache_pb2.WatchResponse(lost=cache_pb2.Lost())


def _limits(settings: CacheSettings) -> cache_pb2.Limits:
    return cache_pb2.Limits(
        max_bytes=settings.max_bytes,
        max_value_bytes=settings.max_value_bytes,
        max_key_bytes=settings.max_key_bytes,
        max_batch=settings.max_batch,
        default_ttl=_duration(settings.default_ttl_s),
        max_ttl=_duration(settings.max_ttl_s),
        max_lease=_duration(settings.max_lease_s),
    )


def _limits_of_a_call(settings: CacheSettings) -> Limits:
    slice_length = max(1, _ANSWERS_AT_A_TIME * settings.max_message_bytes // settings.max_value_bytes)
    return Limits(settings.max_message_bytes, slice_length, settings.max_key_bytes)


def _seconds(duration: duration_pb2.Duration, field: str, most: float) -> float:
    seconds = _as_seconds(duration)
    if not 0 < seconds <= most:
        raise faults.InvalidField(field, f"{seconds:g} s is not above 0 and at most {most:g} s")
    return seconds


def _as_seconds(duration: duration_pb2.Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration
