"""A load generator in a process of its own: `python -m benchmarks.load` reads a plan, prints what it saw.

It sends ready-made bytes and reads no answer's content, so that its own share of the processor stays small; that share is told.
"""

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count

import grpc
import uvloop
from hone.channel import options
from hone.inference.v1 import inference_pb2 as pb

SERVICE = "/hone.inference.v1.InferenceService"
REQUESTS: Mapping[str, type[pb.EmbedRequest] | type[pb.ClassifyRequest]] = {"Embed": pb.EmbedRequest, "Classify": pb.ClassifyRequest}
TICK_S = 0.005
LATE_SHARE = 0.9  # of the deadline: a call ended after that was not refused, it was not answered in time


@dataclass(frozen=True)
class Plan:
    """For `seconds` after `warm_s`: `callers` that each send one request after the other, or `rate` requests a second whatever comes back.

    A request has `rows` texts, taken in turn, and where there are `users` it is one of theirs, by whom split calls are dealt to arms.
    """

    address: str
    model: str
    texts: list[str]
    callers: int
    seconds: float
    warm_s: float = 0.5
    rows: int = 1
    rate: float = 0.0
    deadline_s: float = 30.0
    method: str = "Embed"
    users: int = 0

    def requests(self) -> list[bytes]:
        """Ready-made, of all texts."""
        starts = range(0, len(self.texts) - self.rows + 1, self.rows)
        return [self._request(self.texts[start : start + self.rows], turn).SerializeToString() for turn, start in enumerate(starts)]

    def _request(self, texts: Sequence[str], turn: int) -> pb.EmbedRequest | pb.ClassifyRequest:
        options = pb.CallOptions(sticky_key=f"user-{turn % self.users}") if self.users else None
        return REQUESTS[self.method](model=self.model, texts=texts, options=options)


@dataclass(frozen=True)
class Load:
    """What ended in the measured time: `requests` were answered, in `latencies_s`, ascending. `cpu_seconds` is the generator's own."""

    requests: int
    refused: int
    late: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float
    refused_p50_ms: float
    refused_p99_ms: float
    cpu_seconds: float
    latencies_s: list[float]

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


@dataclass
class _Window:
    """What ends between `begin` and `end`: a later answer comes from a server with less to do than it was to be measured with."""

    begin: float
    end: float
    answered: list[float] = field(default_factory=list)  # seconds
    refused: list[float] = field(default_factory=list)
    late: int = 0
    failed: int = 0

    def saw(self, sent: float, code: grpc.StatusCode, deadline_s: float) -> None:
        now = time.monotonic()
        if not self.begin <= now < self.end:
            return
        if code is grpc.StatusCode.OK:
            self.answered.append(now - sent)
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED and now - sent >= LATE_SHARE * deadline_s:
            self.late += 1
        elif code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED):
            self.refused.append(now - sent)
        else:
            self.failed += 1


async def _load(plan: Plan) -> Load:
    requests = plan.requests()
    turns = count()
    begin = time.monotonic() + plan.warm_s
    window = _Window(begin, begin + plan.seconds)
    async with grpc.aio.insecure_channel(plan.address, options(retries=False)) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{SERVICE}/{plan.method}")

        async def ask() -> None:
            sent = time.monotonic()
            try:
                await call(requests[next(turns) % len(requests)], timeout=plan.deadline_s)
                code = grpc.StatusCode.OK
            except grpc.aio.AioRpcError as error:
                code = error.code()
            window.saw(sent, code, plan.deadline_s)

        async def caller() -> None:
            while time.monotonic() < window.end:
                await ask()

        async def pacer() -> None:
            sent, started = 0, time.monotonic()
            async with asyncio.TaskGroup() as group:
                while (now := time.monotonic()) < window.end:
                    while sent < (now - started) * plan.rate:
                        group.create_task(ask())
                        sent += 1
                    await asyncio.sleep(TICK_S)

        tasks = [asyncio.create_task(pacer())] if plan.rate else [asyncio.create_task(caller()) for _ in range(plan.callers)]
        await asyncio.sleep(plan.warm_s)
        before = _cpu_seconds()
        await asyncio.sleep(window.end - time.monotonic())
        used = _cpu_seconds() - before
        await asyncio.gather(*tasks)
    answered, refused = sorted(window.answered), sorted(window.refused)
    return Load(
        requests=len(answered),
        refused=len(refused),
        late=window.late,
        failed=window.failed,
        seconds=plan.seconds,
        p50_ms=percentile(answered, 0.5) * 1e3,
        p99_ms=percentile(answered, 0.99) * 1e3,
        refused_p50_ms=percentile(refused, 0.5) * 1e3,
        refused_p99_ms=percentile(refused, 0.99) * 1e3,
        cpu_seconds=used,
        latencies_s=answered,
    )


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(_load(Plan(**json.load(sys.stdin)))))))
