"""`python -m services.cache`: the cache service, from its settings to its end."""

import sys
import time
from contextlib import AsyncExitStack

from hone.cache.v1 import cache_pb2_grpc

from services.cache.bounded import BoundedStore
from services.cache.compressed import CompressedStore
from services.cache.disk import disk_store
from services.cache.invalidations import Invalidations
from services.cache.leases import Leases, LocalLeases
from services.cache.memory import MemoryStore
from services.cache.metered import LEASE_COUNTERS, MeteredStore, StatsCollector
from services.cache.servicer import SERVICE, CacheServicer
from services.cache.settings import CacheSettings
from services.cache.store import Store
from services.chassis import settings as chassis_settings
from services.chassis.errors import ErrorTable
from services.chassis.server import Server, run, until_signalled


async def _serve(settings: CacheSettings) -> None:
    """The store closes after the last call has ended."""
    async with AsyncExitStack() as stack:
        server = Server(settings, ErrorTable())
        invalidations = Invalidations(settings.max_untold_keys)
        opened, leases = await _open(settings, invalidations, stack)
        compressed = CompressedStore(opened, settings.compress_bytes, settings.max_value_bytes)
        store = BoundedStore(compressed, settings.max_waiting)
        door = CacheServicer(MeteredStore(store, server.registry), settings, leases, unmetered=store, invalidations=invalidations)
        server.registry.register(StatsCollector(door.stats, LEASE_COUNTERS, {}))
        server.before_drain.append(door.end_streams)
        cache_pb2_grpc.add_CacheServiceServicer_to_server(door, server.grpc)
        await stack.enter_async_context(server.running([SERVICE]))
        await server.set_ready(SERVICE, True)
        await until_signalled()


async def _open(settings: CacheSettings, invalidations: Invalidations, stack: AsyncExitStack) -> tuple[Store, Leases]:
    if settings.store == "valkey":
        return await _open_valkey(settings, invalidations, stack)
    leases = LocalLeases(time.monotonic, settings.max_leases)
    if settings.store == "memory":
        return MemoryStore(settings.max_bytes, time.monotonic), leases
    store = await stack.enter_async_context(disk_store(settings.folder, settings.eviction, settings.max_bytes, shards=settings.shards))
    return store, leases


async def _open_valkey(settings: CacheSettings, invalidations: Invalidations, stack: AsyncExitStack) -> tuple[Store, Leases]:
    # Here, since an extra brings what they need. Leases lie where entries do, or each replica would give its own.
    from services.cache.valkey import valkey_store
    from services.cache.valkey_leases import ValkeyLeases
    from services.cache.valkey_news import hearing
    from services.cache.valkey_server import valkey_server

    try:
        server = await stack.enter_async_context(valkey_server(settings.url, settings.url_timeout_s))
    except ValueError as error:
        raise OSError(f"url: {error}") from error
    await stack.enter_async_context(hearing(server, invalidations))
    return await stack.enter_async_context(valkey_store(server)), ValkeyLeases(server)


def main() -> None:
    settings = chassis_settings.load(CacheSettings)
    try:
        run(_serve(settings), settings)
    except OSError as error:  # a taken port or folder: the operator's to mend, so the reason without a traceback
        sys.exit(f"the cache service cannot run: {error}")


if __name__ == "__main__":
    main()
