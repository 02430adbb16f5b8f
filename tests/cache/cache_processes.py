"""The cache service as a process of its own, on a free port."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]


async def start(folder: Path, **settings: str) -> Process:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HONE_")}
    environment |= {"HONE_CACHE_FOLDER": str(folder), "HONE_CACHE_PORT": "0", "PYTHONPATH": str(ROOT / "clients" / "python"), **settings}
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "services.cache", cwd=ROOT, env=environment, stderr=PIPE)


@asynccontextmanager
async def serving(folder: Path, **settings: str) -> AsyncIterator[tuple[Process, str]]:
    """A running service and its address; killed at the end of the block if it still runs."""
    process = await start(folder, **settings)
    try:
        yield process, await listening(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def listening(process: Process) -> str:
    assert process.stderr is not None
    async for line in process.stderr:
        record = json.loads(line)
        if record["event"] == "listening":
            return f"127.0.0.1:{record['port']}"
    raise AssertionError("the service ended without listening")
