"""Instances of a running service that are killed or stop: who is told what, and that serving goes on without anybody's help."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hone.inference.v1 import inference_pb2 as pb
from hone.inference.v1 import inference_pb2_grpc

from services.chassis.errors import PUSHBACK_KEY
from services.repository.store import Repository
from tests.inference.conftest import PLAIN, plain_model, seal

ROOT = Path(__file__).parents[2]
NAME = "hone.inference.v1.InferenceService"
WAIT_S = 60.0  # only a hanging service waits so long
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    root = tmp_path_factory.mktemp("backend_faults")
    made = Repository(root / "repository")
    seal(made, plain_model(root / "plain"), "plain", PLAIN, "stable")
    return made


class Service:
    """The process, and the ways to ask it."""

    def __init__(self, process: Process, channel: grpc.aio.Channel) -> None:
        self.process = process
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    async def doubled(self, *values: float, timeout: float = WAIT_S) -> list[float]:
        x = pb.Tensor(datatype="FP32", shape=[1, 3], data=np.array(values, np.float32).tobytes())
        answer = await self._stub.Predict(pb.PredictRequest(model="plain", inputs=[pb.NamedTensor(name="x", tensor=x)]), timeout=timeout)
        data = {output.name: output.tensor.data for output in answer.outputs}["doubled"]
        return [float(value) for value in np.frombuffer(data, np.float32)]

    async def fault(self, *values: float) -> grpc.aio.AioRpcError | None:
        """None where the answer is right."""
        try:
            answer = await self.doubled(*values)
        except grpc.aio.AioRpcError as error:
            return error
        assert answer == [2 * value for value in values]
        return None

    async def told(self, status: int) -> None:
        """Returns when health says so."""
        async with asyncio.timeout(WAIT_S):
            async for response in self._health.Watch(health_pb2.HealthCheckRequest(service=NAME)):
                if response.status == status:
                    return

    def children(self) -> dict[int, str]:
        """State letter of each child process, as /proc tells it: Z is a zombie."""
        found = {}
        for tasks in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in tasks.read_text().split():
                with suppress(FileNotFoundError, ProcessLookupError):
                    found[int(pid)] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return found

    def child(self) -> int:
        (pid,) = self.children()
        return pid


@asynccontextmanager
async def serving(repository: Repository, **settings: object) -> AsyncIterator[Service]:
    chosen = {"PORT": 0, "REPOSITORY": repository.root, "INSTANCES": 1, "THREADS": 1, "ANSWERS_BYTES": 0, **settings}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HONE_")}
    environment |= {f"HONE_INFERENCE_{name}": str(value) for name, value in chosen.items()}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.inference", cwd=ROOT, env=environment, stderr=PIPE)
    swallowing = None
    try:
        port = await _port(process)
        swallowing = asyncio.create_task(_swallow(process))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            service = Service(process, channel)
            await service.told(SERVING)
            yield service
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if swallowing is not None:
            await swallowing


async def _port(process: Process) -> int:
    assert process.stderr is not None
    async for line in process.stderr:
        record = json.loads(line)
        if record["event"] == "listening":
            return int(record["port"])
    raise AssertionError("the service ended without listening")


async def _swallow(process: Process) -> None:
    """A full pipe would stop the service."""
    assert process.stderr is not None
    while await process.stderr.read(1 << 16):
        pass


async def answered_again(service: Service, *values: float) -> None:
    """Asks until it is answered; until then callers are told to come back."""
    async with asyncio.timeout(WAIT_S):
        while (error := await service.fault(*values)) is not None:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            assert int(dict(error.trailing_metadata())[PUSHBACK_KEY]) > 0


async def test_a_child_that_is_killed_or_hangs_turns_health_and_is_replaced(repository: Repository) -> None:
    async with serving(repository, ISOLATION="process", HANG_S=1) as service:
        assert await service.fault(1, 2, 3) is None
        killed = service.child()
        turned = asyncio.create_task(service.told(NOT_SERVING))
        os.kill(killed, signal.SIGKILL)
        await turned
        await answered_again(service, 4, 5, 6)
        await service.told(SERVING)
        stopped = service.child()
        assert stopped != killed
        os.kill(stopped, signal.SIGSTOP)
        error = await service.fault(1, 2, 3)
        assert error is not None
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "internal error" in (error.details() or "")
        await answered_again(service, 4, 5, 6)
        (state,) = service.children().values()  # one child, and nobody's zombie
        assert state != "Z"
        service.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(service.process.wait(), WAIT_S) == 0


async def test_the_other_instance_goes_on_and_stays_healthy(repository: Repository) -> None:
    async with serving(repository, ISOLATION="process", INSTANCES=2) as service:
        before = set(service.children())
        assert len(before) == 2
        os.kill(min(before), signal.SIGKILL)
        lost = 0
        for number in range(200):  # the batch that ran there, at most, is lost; nobody is told to come back
            error = await service.fault(number, 0, 1)
            assert error is None or error.code() is grpc.StatusCode.INTERNAL, error
            lost += error is not None
        assert lost <= 1
        async with asyncio.timeout(WAIT_S):
            while len(service.children()) < 2 or set(service.children()) == before:
                await service.doubled(1, 1, 1)


async def test_a_stop_while_a_batch_hangs_ends_within_the_grace(repository: Repository) -> None:
    grace_s = 1.0
    async with serving(repository, ISOLATION="process", GRACE_S=grace_s) as service:
        child = service.child()
        os.kill(child, signal.SIGSTOP)
        hanging = asyncio.create_task(service.fault(1, 2, 3))
        await service.told(SERVING)  # a round trip later, the call has been taken
        service.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(service.process.wait(), grace_s + WAIT_S / 4) == 0
        assert await hanging is not None
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
