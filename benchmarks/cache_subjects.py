"""What the cache's benchmark asks: the service over each store, diskcache in this process, and Valkey called directly."""

import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import diskcache
import grpc
from hone.aio import CacheClient
from redis.asyncio import BlockingConnectionPool, Redis

from benchmarks.load import percentile
from benchmarks.suite import free_ports, stop

NAMESPACE = "bench"
TTL_S = 3600.0
READY_S = 30.0
STORED_A_CALL = 64


@dataclass(frozen=True)
class Call:
    """Closed-loop callers that each `get` or `put` `batch` keys a time, for `seconds`. `keys` draws the keys of a call."""

    kind: str
    batch: int
    callers: int
    seconds: float
    keys: Callable[[int], list[bytes]]
    value: bytes


@dataclass(frozen=True)
class Cell:
    """What the callers saw; `per_second` counts values, not calls."""

    p50_ms: float
    p99_ms: float
    per_second: float


class Subject(Protocol):
    """Something that keeps bytes under keys."""

    async def store(self, keys: Sequence[bytes], value: bytes) -> None:
        """Puts each key once."""
        ...

    async def run(self, call: Call) -> Cell:
        """What the callers saw. Raises RuntimeError where a hit was none, or a miss."""
        ...


def cell(latencies_s: Sequence[float], call: Call, seconds: float) -> Cell:
    ordered = sorted(latencies_s)
    return Cell(percentile(ordered, 0.5) * 1e3, percentile(ordered, 0.99) * 1e3, len(ordered) * call.batch / seconds)


class Looped:
    """Callers on the event loop."""

    async def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        raise NotImplementedError

    async def put(self, keys: Sequence[bytes], value: bytes) -> None:
        raise NotImplementedError

    async def store(self, keys: Sequence[bytes], value: bytes) -> None:
        for begin in range(0, len(keys), STORED_A_CALL):
            await self.put(keys[begin : begin + STORED_A_CALL], value)

    async def run(self, call: Call) -> Cell:
        latencies_s: list[float] = []
        begun = time.perf_counter()
        await asyncio.gather(*(self._caller(call, begun + call.seconds, latencies_s) for _ in range(call.callers)))
        return cell(latencies_s, call, time.perf_counter() - begun)

    async def _caller(self, call: Call, end_s: float, latencies_s: list[float]) -> None:
        while (sent_s := time.perf_counter()) < end_s:
            keys = call.keys(call.batch)
            if call.kind == "put":
                await self.put(keys, call.value)
            else:
                _check(call, await self.get(keys))
            latencies_s.append(time.perf_counter() - sent_s)


class Service(Looped):
    """Through the client, as every program does."""

    def __init__(self, client: CacheClient) -> None:
        self.client = client

    async def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return await self.client.get(NAMESPACE, keys)

    async def put(self, keys: Sequence[bytes], value: bytes) -> None:
        await self.client.put(NAMESPACE, dict.fromkeys(keys, value))


class Direct(Looped):
    """Valkey as a Python program calls it: MGET, and a pipeline of SET with a time to live."""

    def __init__(self, client: Redis) -> None:
        self._client: Any = client  # whose types allow for text, which is not asked for

    async def get(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        found: list[bytes | None] = await self._client.mget(keys)
        return found

    async def put(self, keys: Sequence[bytes], value: bytes) -> None:
        async with self._client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.set(key, value, ex=int(TTL_S))
            await pipeline.execute()


class InProcess:
    """diskcache with its own defaults; a caller is a thread, and a batch of puts one transaction."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    async def store(self, keys: Sequence[bytes], value: bytes) -> None:
        with self._cache.transact():
            for key in keys:
                self._cache.set(key, value, expire=TTL_S)

    async def run(self, call: Call) -> Cell:
        latencies_s: list[float] = []
        start = threading.Barrier(call.callers)
        begun = time.perf_counter()
        with ThreadPoolExecutor(call.callers) as threads:
            loop = asyncio.get_running_loop()
            work = [loop.run_in_executor(threads, self._caller, call, start, latencies_s) for _ in range(call.callers)]
            await asyncio.gather(*work)
        return cell(latencies_s, call, time.perf_counter() - begun)

    def _caller(self, call: Call, start: threading.Barrier, latencies_s: list[float]) -> None:
        start.wait()
        end_s = time.perf_counter() + call.seconds
        while (sent_s := time.perf_counter()) < end_s:
            self._one(call, call.keys(call.batch))
            latencies_s.append(time.perf_counter() - sent_s)

    def _one(self, call: Call, keys: Sequence[bytes]) -> None:
        if call.kind == "put":
            with self._cache.transact(retry=True):
                for key in keys:
                    self._cache.set(key, call.value, expire=TTL_S, retry=True)
        else:
            _check(call, [self._cache.get(key, retry=True) for key in keys])


def _check(call: Call, found: Sequence[bytes | None]) -> None:
    """A benchmark of the wrong answers would be none."""
    if (call.kind == "hit") != (None not in found):
        raise RuntimeError(f"a {call.kind} that was none")


@asynccontextmanager
async def service(store: str, **settings: str) -> AsyncIterator[Service]:
    """The service over a store, as a program of its own."""
    with _program(HONE_CACHE_STORE=store, **settings) as address:
        async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(READY_S):
            await channel.channel_ready()
        async with CacheClient(address) as client:
            yield Service(client)


@contextmanager
def _program(**settings: str) -> Iterator[str]:
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="hone-") as folder, (Path(folder) / "log.txt").open("w") as log:
        own: Mapping[str, str] = {"HONE_CACHE_PORT": str(port), "HONE_CACHE_FOLDER": f"{folder}/cache", **settings}
        process = subprocess.Popen([sys.executable, "-m", "services.cache"], env={**os.environ, **own}, stderr=log, text=True)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            stop(process)


@asynccontextmanager
async def direct(port: int) -> AsyncIterator[Direct]:
    pool = BlockingConnectionPool(port=port, protocol=2, timeout=None, max_connections=64, driver_info=None)
    try:
        yield Direct(Redis(connection_pool=pool))
    finally:
        await pool.disconnect()


@contextmanager
def in_process() -> Iterator[InProcess]:
    with tempfile.TemporaryDirectory(prefix="hone-") as folder, diskcache.Cache(folder, size_limit=1 << 32) as cache:
        yield InProcess(cache)


def fresh_keys(count: int) -> list[bytes]:
    """Keys that nobody has stored, as long as inference's."""
    return [secrets.token_bytes(16) for _ in range(count)]
