"""The gateway's promises, proved on the real one with hand-written replicas behind it: no model is loaded here."""

import socket
from collections.abc import Iterator
from typing import IO

import grpc
import pytest
from hone.inference.v1 import inference_pb2 as pb
from hone.inference.v1 import inference_pb2_grpc as inference
from hone.optimization.v1 import jobs_pb2, jobs_pb2_grpc

from tests.compose.compose_project import ComposeProject, eventually
from tests.compose.load import under_load

pytestmark = [pytest.mark.compose, pytest.mark.timeout(600)]

REPLICAS = 3
END_STREAM, END_HEADERS = 1, 4  # flags of HTTP/2 frames
LARGE_BYTES = 63 << 20  # just under the largest message


@pytest.fixture(scope="module")
def project() -> Iterator[ComposeProject]:
    project = ComposeProject("hone-gateway-test", "compose.yaml", "tests/compose/fakes.yaml")
    try:
        project.run("build", "inference", timeout_s=500)
        yield project
    finally:
        project.remove()


@pytest.fixture
def gateway(project: ComposeProject) -> Iterator[ComposeProject]:
    """Fresh replicas behind a gateway that sees all of them."""
    project.run("up", "--detach", "--no-deps", "--force-recreate", "--scale", f"inference={REPLICAS}", "gateway", "inference")
    with grpc.insecure_channel(project.address) as channel:
        assert eventually(lambda: len(answering(inference.InferenceServiceStub(channel))) == REPLICAS, within_s=60)
    yield project
    project.run("rm", "--force", "--stop", "gateway", "inference")


@pytest.fixture
def stub(gateway: ComposeProject) -> Iterator[inference.InferenceServiceStub]:
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(gateway.address, options=limits) as channel:
        yield inference.InferenceServiceStub(channel)


def embed(stub: inference.InferenceServiceStub) -> str:
    return stub.Embed(pb.EmbedRequest(model="any", texts=["a"]), timeout=5).served.replica


def answering(stub: inference.InferenceServiceStub, calls: int = 4 * REPLICAS) -> set[str]:
    """The replicas that answered a run of calls; empty when one call failed."""
    try:
        return {embed(stub) for _ in range(calls)}
    except grpc.RpcError:
        return set()


def test_calls_of_one_connection_spread_over_every_replica(stub: inference.InferenceServiceStub) -> None:
    assert len({embed(stub) for _ in range(30)}) == REPLICAS


def test_a_replica_that_turns_not_serving_gets_no_calls_until_it_serves_again(
    gateway: ComposeProject, stub: inference.InferenceServiceStub
) -> None:
    draining = gateway.containers("inference")[0]
    gateway.signal(draining, "SIGUSR1")
    assert eventually(lambda: len(answering(stub)) == REPLICAS - 1, within_s=10)
    assert draining[:12] not in answering(stub)
    gateway.signal(draining, "SIGUSR2")
    assert eventually(lambda: draining[:12] in answering(stub), within_s=10)


def test_without_a_replica_the_caller_gets_unavailable_in_grpcs_own_form(gateway: ComposeProject) -> None:
    with grpc.insecure_channel(gateway.address) as channel, pytest.raises(grpc.RpcError) as refused:
        jobs_pb2_grpc.JobServiceStub(channel).ListJobs(jobs_pb2.ListJobsRequest(), timeout=5)
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.UNAVAILABLE, "no replica can take the call")


def test_a_refusal_of_the_gateways_own_is_http_200_as_grpc_demands(gateway: ComposeProject) -> None:
    path = b"/hone.optimization.v1.JobService/ListJobs"
    headers = b"\x83\x86\x44" + bytes([len(path)]) + path + b"\x41\x04hone\x5f\x10application/grpc"  # HPACK: POST, http, path, authority
    settings, request = frame(4, 0, 0, b""), frame(1, END_HEADERS, 1, headers) + frame(0, END_STREAM, 1, b"\0" * 5)
    host, port = gateway.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection, connection.makefile("rb") as answer:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + request)
        kind, flags, payload = read_frame(answer)
        while kind != 1:
            kind, flags, payload = read_frame(answer)
    assert payload[:1] == b"\x88"  # HPACK: status 200
    assert flags & END_STREAM  # no body, which a caller would take for messages
    assert b"application/grpc" in payload


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def read_frame(source: IO[bytes]) -> tuple[int, int, bytes]:
    """Type, flags and payload of the next HTTP/2 frame."""
    head = source.read(9)
    return head[3], head[4], source.read(int.from_bytes(head[:3], "big"))


def test_a_caller_that_cancels_frees_its_replica(stub: inference.InferenceServiceStub) -> None:
    def dropped() -> int:
        return stub.GetStatistics(pb.GetStatisticsRequest(), timeout=5).models[0].dropped_rows

    stuck = stub.Embed.future(pb.EmbedRequest(model="stuck"), timeout=60)
    assert sum(dropped() for _ in range(10)) == 0
    stuck.cancel()
    assert eventually(lambda: dropped() == 1, within_s=10)


def test_a_message_of_the_largest_size_passes_both_ways(stub: inference.InferenceServiceStub) -> None:
    tensor = pb.NamedTensor(name="x", tensor=pb.Tensor(data=b"\1" * LARGE_BYTES))
    answer = stub.Predict(pb.PredictRequest(model="any", inputs=[tensor]), timeout=60)
    assert answer.outputs[0] == tensor


def test_a_replica_that_drains_and_stops_under_load_loses_no_call(gateway: ComposeProject, stub: inference.InferenceServiceStub) -> None:
    with under_load(lambda: embed(stub)) as load:
        load.await_answers(100)
        gateway.stop(gateway.containers("inference")[0])
        load.await_answers(100)
    assert not load.failed
    assert len(load.answered) == REPLICAS


def test_a_replica_killed_under_load_costs_at_most_the_calls_it_was_running(
    gateway: ComposeProject, stub: inference.InferenceServiceStub
) -> None:
    callers = 4
    with under_load(lambda: embed(stub), callers) as load:
        load.await_answers(100)
        gateway.signal(gateway.containers("inference")[0], "SIGKILL")
        load.await_answers(100)
    assert set(load.failed) <= {grpc.StatusCode.UNAVAILABLE}
    assert load.failed.total() <= callers
