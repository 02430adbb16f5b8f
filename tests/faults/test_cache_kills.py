"""SIGKILL at any moment, a thousand times: the cache opens again, is whole, and tells nothing but what was put and is still valid.

A process's death loses no put that was acknowledged: the kernel has what was written. Only a power cut may lose the last few.
"""

import asyncio
import json
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from hone.aio import CacheClient
from hone.cache.v1 import cache_pb2

from services.cache.store import Entry
from tests.cache.cache_processes import ROOT, serving
from tests.faults.kept_values import KeptValues
from tests.faults.store_load import ALL_VALUES_BYTES, load, look_all_up

STORE_KILLS = 500  # of each kind
LIMIT_S = 100  # of each kind, where a busy machine is not done by then
SERVICE_KILLS = 12
LONGEST_LOAD_S = 0.2


@pytest.mark.parametrize(
    ("room_bytes", "shards", "forgets"),
    [
        pytest.param(64 * ALL_VALUES_BYTES, 2, False, id="room for all, in two shards"),
        pytest.param(1 << 20, 1, True, id="room for some"),
    ],
)
def test_a_store_killed_again_and_again(tmp_path: Path, room_bytes: int, shards: int, forgets: bool) -> None:
    plan = (str(tmp_path / "cache"), str(room_bytes), str(shards), str(STORE_KILLS), str(LIMIT_S), "5")
    command = [sys.executable, "-m", "tests.faults.killed_store", *plan]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout)
    print(f"{sum(told['killed'].values())} kills in {told['seconds']:.0f} s: {told['killed']}")
    assert sum(told["killed"].values()) == STORE_KILLS or told["seconds"] > LIMIT_S  # on a busy machine as many as there is time for
    assert min(told["killed"].values()) > 10
    assert set(told["killed"]) == {"while opening", "in the check", "under load"}
    assert (told["forgotten"] > 0) == forgets
    for event in ("put", "delete", "clear"):  # some were under way when the kill came
        assert told["told"][event] > told["told"][f"{event} done"] > 0


class Remote:
    """The service, as a store."""

    def __init__(self, client: CacheClient) -> None:
        self._client = client
        self.get, self.delete, self.clear = client.get, client.delete, client.clear

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        values = {entry.key: entry.value for entry in entries}
        return [status == cache_pb2.ITEM_STATUS_OK for status in await self._client.put(namespace, values)]


async def test_a_service_killed_under_load_again_and_again(tmp_path: Path) -> None:
    model, chance, answered = KeptValues(forgets=False), random.Random(5), 0

    def tell(kind: str, *event: object) -> None:
        nonlocal answered
        answered += kind.endswith(" done")
        model.take(kind, *event)

    for life in range(SERVICE_KILLS):
        async with serving(tmp_path) as (process, address), CacheClient(address) as client:
            store = Remote(client)
            await look_all_up(store, tell)
            assert (await client.stats()).corrupt == 0
            asyncio.get_running_loop().call_later(chance.uniform(0, LONGEST_LOAD_S), process.send_signal, signal.SIGKILL)
            with suppress(grpc.aio.AioRpcError):
                await load(store, tell, life, seed=5)
            assert await process.wait() == -signal.SIGKILL
        model.kill()
        model.find_no_epochs()
    async with serving(tmp_path) as (_, address), CacheClient(address) as client:
        await look_all_up(Remote(client), tell)
    assert answered > 10 * SERVICE_KILLS
    assert not (tmp_path / "damaged").exists()
