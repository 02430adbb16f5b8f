"""`python -m services`: cache, optimization and inference on this machine, with embedded defaults and without Docker.

Data lies under `.hone` in the current directory, or under `HONE_FOLDER`. Every setting of a service can be given in the environment, as
for the service alone. SIGTERM or Ctrl-C stops the three in order.
"""

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from services.chassis.probe import probe

# Started in this order, stopped in the opposite one: who is asked starts first and ends last.
PORTS: Mapping[str, int] = {"cache": 7003, "optimization": 7001, "inference": 7002}
FULL_NAMES: Mapping[str, str] = {
    "cache": "hone.cache.v1.CacheService",
    "optimization": "hone.optimization.v1.JobService",
    "inference": "hone.inference.v1.InferenceService",
}
START_S = 120.0
STOP_S = 60.0  # a service that has not ended by then, past its own grace period, hangs


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The children's environment: the defaults that make them one suite, unless given otherwise."""
    root = Path(given.get("HONE_FOLDER", ".hone")).resolve()
    defaults = {
        "HONE_CACHE_FOLDER": str(root / "cache"),
        "HONE_OPTIMIZATION_FOLDER": str(root / "optimization"),
        "HONE_OPTIMIZATION_REPOSITORY": str(root / "repository"),
        "HONE_OPTIMIZATION_CACHE": address("cache", given),
        "HONE_INFERENCE_REPOSITORY": str(root / "repository"),
        "HONE_INFERENCE_CACHE": address("cache", given),
    }
    return {**defaults, **{name: value for name, value in given.items() if name != "HONE_FOLDER"}}


def address(service: str, given: Mapping[str, str]) -> str:
    """Where a service of this suite listens."""
    prefix = f"HONE_{service.upper()}_"
    return f"{given.get(prefix + 'HOST', '127.0.0.1')}:{given.get(prefix + 'PORT', PORTS[service])}"


async def main() -> int:
    """Runs the suite until a signal, or until a service ends by itself; the exit status."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    children: dict[str, asyncio.subprocess.Process] = {}
    try:
        for service in PORTS:
            if _is_taken(address(service, os.environ)):  # asked first: whoever holds the port would answer the probe below
                print(f"{service} cannot start: {address(service, os.environ)} is taken", file=sys.stderr)
                return 1
            children[service] = await _start(service)
            if not await _serving(service, children[service], stop):
                return 0 if stop.is_set() else 1
        print("hone is up:", ", ".join(f"{service} {address(service, os.environ)}" for service in PORTS), flush=True)
        return await _until_end(children, stop)
    finally:
        for service in reversed(children):
            await _stop(children[service])


def _is_taken(target: str) -> bool:
    host, _, port = target.rpartition(":")
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier life are no obstacle
        try:
            attempt.bind((host, int(port)))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


async def _start(service: str) -> asyncio.subprocess.Process:
    # A session of its own: Ctrl-C in a terminal must not stop the three at once, but one after the other.
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"services.{service}", env=environment(os.environ), start_new_session=True
    )


async def _serving(service: str, process: asyncio.subprocess.Process, stop: asyncio.Event) -> bool:
    """Waits until the service answers SERVING; False when it ends, or a signal comes, or it takes too long."""
    fault = ""
    with suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            while process.returncode is None and not stop.is_set():
                fault = await asyncio.to_thread(probe, address(service, os.environ), FULL_NAMES[service])
                if not fault:
                    return True
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 0.1)
    if not stop.is_set():
        print(f"{service} did not start: {fault or f'exit status {process.returncode}'}", file=sys.stderr)
    return False


async def _until_end(children: Mapping[str, asyncio.subprocess.Process], stop: asyncio.Event) -> int:
    ends = {asyncio.ensure_future(child.wait()): service for service, child in children.items()}
    signalled = asyncio.ensure_future(stop.wait())
    done, pending = await asyncio.wait([*ends, signalled], return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    if signalled in done:
        return 0
    print(f"{', '.join(ends[task] for task in done if task in ends)} ended by itself; stopping the others", file=sys.stderr)
    return 1


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
