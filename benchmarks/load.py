"""A closed-loop load generator in a process of its own: `python -m benchmarks.load` reads a plan, prints what it saw.

It sends ready-made bytes and reads no answer's content, so that its own share of the processor stays small; that share is told.
"""

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count

import grpc
import uvloop
from hone.channel import options
from hone.inference.v1 import inference_pb2 as pb

METHOD = "/hone.inference.v1.InferenceService/Embed"
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Plan:
    """`callers` each send one text after the other, taken in turn, for `seconds` after `warm_s`."""

    address: str
    model: str
    texts: list[str]
    callers: int
    seconds: float
    warm_s: float = 0.5


@dataclass(frozen=True)
class Load:
    """What the callers saw in the measured time. `cpu_seconds` is what the generator itself used."""

    requests: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


def run(plan: Plan) -> Load:
    """Runs a plan in a child process. Raises subprocess.CalledProcessError."""
    command = [sys.executable, "-m", "benchmarks.load"]
    done = subprocess.run(command, input=json.dumps(asdict(plan)), stdout=subprocess.PIPE, text=True, check=True)
    return Load(**json.loads(done.stdout))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank of values in ascending order; nan of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def _load(plan: Plan) -> Load:
    requests = [pb.EmbedRequest(model=plan.model, texts=[text]).SerializeToString() for text in plan.texts]
    turns = count()
    latencies: list[float] = []
    failed = 0
    async with grpc.aio.insecure_channel(plan.address, options(retries=False)) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        begin = time.monotonic() + plan.warm_s
        end = begin + plan.seconds

        async def caller() -> None:
            nonlocal failed
            while (sent := time.monotonic()) < end:
                try:
                    await call(requests[next(turns) % len(requests)], timeout=TIMEOUT_S)
                except grpc.aio.AioRpcError:
                    failed += 1
                    continue
                # What is answered later was answered by a server with fewer callers than it was to be measured with.
                if begin <= (now := time.monotonic()) < end:
                    latencies.append(now - sent)

        callers = [asyncio.create_task(caller()) for _ in range(plan.callers)]
        await asyncio.sleep(plan.warm_s)
        before = _cpu_seconds()
        await asyncio.sleep(end - time.monotonic())
        used = _cpu_seconds() - before
        await asyncio.gather(*callers)
    latencies.sort()
    return Load(len(latencies), failed, plan.seconds, percentile(latencies, 0.5) * 1e3, percentile(latencies, 0.99) * 1e3, used)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(_load(Plan(**json.load(sys.stdin)))))))
