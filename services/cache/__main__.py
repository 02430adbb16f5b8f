"""`python -m services.cache`: the cache service, from its settings to its end."""

import sys
import time
from contextlib import AsyncExitStack

from hone.cache.v1 import cache_pb2_grpc

from services.cache.bounded import BoundedStore
from services.cache.disk import disk_store
from services.cache.memory import MemoryStore
from services.cache.metered import MeteredStore
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
        store = MeteredStore(BoundedStore(await _open(settings, stack), settings.max_waiting), server.registry)
        cache_pb2_grpc.add_CacheServiceServicer_to_server(CacheServicer(store, settings), server.grpc)
        await stack.enter_async_context(server.running([SERVICE]))
        await server.set_ready(SERVICE, True)
        await until_signalled()


async def _open(settings: CacheSettings, stack: AsyncExitStack) -> Store:
    if settings.store == "memory":
        return MemoryStore(settings.max_bytes, time.monotonic)
    return await stack.enter_async_context(disk_store(settings.folder, settings.eviction, settings.max_bytes))


def main() -> None:
    settings = chassis_settings.load(CacheSettings)
    try:
        run(_serve(settings), settings)
    except OSError as error:  # a taken port or folder: the operator's to mend, so the reason without a traceback
        sys.exit(f"the cache service cannot run: {error}")


if __name__ == "__main__":
    main()
