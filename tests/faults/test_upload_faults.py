"""Uploads to a real service that is killed, or whose disk is full, in the middle."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import hone
import pytest
from hone import folders
from hone.repository.v1 import models_pb2 as pb
from hone.repository.v1 import models_pb2_grpc

from tests.models import shallow_minilm

ROOT = Path(__file__).parents[2]


@contextmanager
def serving(folder: Path, max_file_bytes: int = resource.RLIM_INFINITY) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The service and its address; it can write no file longer than the limit."""
    environment = {
        **os.environ,
        "HONE_OPTIMIZATION_FOLDER": str(folder / "jobs"),
        "HONE_OPTIMIZATION_REPOSITORY": str(folder / "repository"),
        "HONE_OPTIMIZATION_PORT": "0",
    }
    program = "import resource, runpy, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    program += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({max_file_bytes}, {max_file_bytes}))\n"
    program += "runpy.run_module('services.optimization', run_name='__main__')"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = (json.loads(line) for line in process.stderr)
            yield process, f"127.0.0.1:{next(line['port'] for line in lines if line['event'] == 'listening')}"
        finally:
            process.kill()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shallow_minilm(tmp_path / "model")


def requests(model: Path, received: dict[str, int]) -> Iterator[pb.UploadModelRequest]:
    return folders.chunks(model, folders.header(model, "m", pb.TASK_EMBEDDING, ["stable"]), received)


def test_a_service_killed_during_an_upload_knows_what_had_arrived(tmp_path: Path, model: Path) -> None:
    with serving(tmp_path) as (process, address), grpc.insecure_channel(address) as channel:

        def killing() -> Iterator[pb.UploadModelRequest]:
            for number, request in enumerate(requests(model, {})):
                yield request
                if number == 12:
                    process.send_signal(signal.SIGKILL)

        with pytest.raises(grpc.RpcError) as caught:
            models_pb2_grpc.ModelServiceStub(channel).UploadModel(killing())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        process.wait(30)
    with serving(tmp_path) as (_, address), hone.Client(address) as client, grpc.insecure_channel(address) as channel:
        assert list(client.models.list()) == []
        stub = models_pb2_grpc.ModelServiceStub(channel)
        upload_id = folders.header(model, "m", pb.TASK_EMBEDDING, ["stable"]).upload_id
        arrived = sum(stub.GetUpload(pb.GetUploadRequest(upload_id=upload_id)).received_bytes.values())
        done: list[int] = []
        made = client.models.push(model, "m", task=pb.TASK_EMBEDDING, channels=["stable"], progress=lambda at, _: done.append(at))
        assert arrived > 0
        assert done[0] > arrived  # what had arrived was not sent again
        assert (made.version, list(made.channels)) == (1, ["stable"])
        client.models.pull("m", tmp_path / "copy")  # checks every digest


def test_a_service_killed_while_it_inspects_an_upload_needs_no_byte_again(tmp_path: Path, model: Path) -> None:
    header = folders.header(model, "m", pb.TASK_EMBEDDING, ["stable"])
    inspected = tmp_path / "repository" / "uploads" / header.upload_id / "finished"
    with serving(tmp_path) as (process, address), grpc.insecure_channel(address) as channel:
        call = models_pb2_grpc.ModelServiceStub(channel).UploadModel.future(requests(model, {}))
        while not inspected.exists() and not call.done():
            pass
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert call.code() is grpc.StatusCode.UNAVAILABLE
    with serving(tmp_path) as (_, address), hone.Client(address) as client, grpc.insecure_channel(address) as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        received = stub.GetUpload(pb.GetUploadRequest(upload_id=header.upload_id)).received_bytes
        assert dict(received) == {file.path: file.size_bytes for file in header.files}
        header_alone = [pb.UploadModelRequest(header=header)]
        assert stub.UploadModel(iter(header_alone)).model.version == 1
        client.models.pull("m", tmp_path / "copy")  # checks every digest


def test_a_write_that_fails_ends_that_upload_alone(tmp_path: Path, model: Path) -> None:
    with serving(tmp_path, max_file_bytes=8 << 20) as (_, address), hone.Client(address) as client:
        with pytest.raises(grpc.RpcError) as caught:
            client.models.push(model, "m", task=pb.TASK_EMBEDDING)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "error" in str(caught.value.details())
        assert str(tmp_path) not in str(caught.value.details())
        assert list(client.models.list()) == []
        assert list(client.jobs.list()) == []
    with serving(tmp_path) as (_, address), hone.Client(address) as client:
        assert client.models.push(model, "m", task=pb.TASK_EMBEDDING).version == 1
