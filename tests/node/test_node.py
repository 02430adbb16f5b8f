# ruff: noqa: N802  # methods are named as the contract names its RPCs
"""The Node.js client against hand-written servers for its own promises, and against the running suite for the contract's."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hone.inference.v1 import inference_pb2 as inference
from hone.inference.v1 import inference_pb2_grpc
from hone.optimization.v1 import jobs_pb2 as jobs
from hone.optimization.v1 import jobs_pb2_grpc

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(shutil.which("node") is None or shutil.which("npm") is None, reason="Node.js and npm are not installed"),
]

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = 'import { connect, status } from "./index.mjs"; const [address] = JSON.parse(process.argv[1]); const client = connect(address);'

Node = Callable[[str, Any], Any]


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, installed from its lock file beside a copy of the contracts."""
    root = tmp_path_factory.mktemp("node")
    shutil.copytree(ROOT / "protos", root / "protos")
    folder = shutil.copytree(ROOT / "clients" / "node", root / "clients" / "node", ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return Path(folder)


@pytest.fixture
def node(client: Path) -> Node:
    """Runs a script that has `client`, connected to the address given, and returns the JSON value of its `answer`."""

    def run(script: str, address: Any) -> Any:
        program = f"{PRELUDE} let answer; {script}; client.close(); console.log(JSON.stringify(answer));"
        command = ["node", "--input-type=module", "--eval", program, json.dumps([address])]
        done = subprocess.run(command, cwd=client, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@contextmanager
def serving(add: Callable[[grpc.Server], None]) -> Iterator[str]:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        add(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


class Echo(inference_pb2_grpc.InferenceServiceServicer):
    """Answers with what it was asked, after failing the first `failures` calls with `code`."""

    def __init__(self, failures: int = 0, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self.failures = failures
        self.code = code
        self.calls: list[Any] = []
        self.remaining_s: list[float] = []

    def _called(self, request: Any, context: grpc.ServicerContext) -> None:
        self.calls.append(request)
        self.remaining_s.append(context.time_remaining())
        if len(self.calls) <= self.failures:
            context.abort(self.code, "not now")

    def Embed(self, request: inference.EmbedRequest, context: grpc.ServicerContext) -> inference.EmbedResponse:
        self._called(request, context)
        vectors = np.arange(2 * len(request.texts), dtype="<f4").reshape(-1, 2)
        tensor = inference.Tensor(datatype="FP32", shape=vectors.shape, data=vectors.tobytes())
        return inference.EmbedResponse(embeddings=tensor, served=inference.Served(replica="echo", queue_ns=1 << 40))

    def Classify(self, request: inference.ClassifyRequest, context: grpc.ServicerContext) -> inference.ClassifyResponse:
        self._called(request, context)
        label = inference.ScoredLabel(label=f"top {request.top_k}", score=0.5)
        return inference.ClassifyResponse(classifications=[inference.Classification(labels=[label]) for _ in request.texts])

    def Predict(self, request: inference.PredictRequest, context: grpc.ServicerContext) -> inference.PredictResponse:
        self._called(request, context)
        return inference.PredictResponse(outputs=request.inputs)

    def LoadModel(self, request: inference.LoadModelRequest, context: grpc.ServicerContext) -> inference.LoadModelResponse:
        self._called(request, context)
        return inference.LoadModelResponse()


@pytest.fixture
def echo() -> Iterator[Callable[..., tuple[Echo, str]]]:
    with ExitStack() as stack:

        def start(**arguments: Any) -> tuple[Echo, str]:
            servicer = Echo(**arguments)
            add = partial(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer)
            return servicer, stack.enter_context(serving(add))

        yield start


def test_embed_gives_a_float32_row_per_text(node: Node, echo: Any) -> None:
    servicer, address = echo()
    answer = node(
        """const { vectors, served } = await client.embed("m", ["a", "b"], { truncate: true, priority: 3 });
        answer = { rows: vectors.map((row) => [row.constructor.name, ...row]), served }""",
        address,
    )
    assert answer["rows"] == [["Float32Array", 0, 1], ["Float32Array", 2, 3]]
    assert (answer["served"]["replica"], answer["served"]["queueNs"]) == ("echo", 1 << 40)
    (request,) = servicer.calls
    assert request == inference.EmbedRequest(model="m", texts=["a", "b"], options=inference.CallOptions(truncate=True, priority=3))


def test_classify_sends_how_many_labels_are_wanted(node: Node, echo: Any) -> None:
    _, address = echo()
    assert node('answer = (await client.classify("m", ["a"], { topK: 2 })).labels', address) == [[{"label": "top 2", "score": 0.5}]]


def test_predict_carries_tensors_both_ways(node: Node, echo: Any) -> None:
    _, address = echo()
    answer = node(
        """const ids = { datatype: "INT64", shape: [1, 2], data: new BigInt64Array([1n, -(2n ** 62n)]) };
        const x = { datatype: "FP64", shape: [3], data: new Float64Array([0, 1.5, 2.5]).subarray(0) };
        const { outputs } = await client.predict("m", { ids, x });
        answer = { ids: [...outputs.ids.data].map(String), shape: outputs.ids.shape, x: [...outputs.x.data], type: outputs.x.datatype }""",
        address,
    )
    assert answer == {"ids": ["1", str(-(2**62))], "shape": [1, 2], "x": [0, 1.5, 2.5], "type": "FP64"}


@pytest.mark.parametrize(
    ("tensor", "error"),
    [
        ('{ datatype: "FP32", shape: [2], data: new Float32Array(3) }', "RangeError"),
        ('{ datatype: "FP32", shape: [2], data: new Float64Array(2) }', "TypeError"),
        ('{ datatype: "STRING", shape: [2], data: new Uint8Array(2) }', "TypeError"),
    ],
)
def test_a_tensor_that_contradicts_itself_is_never_sent(node: Node, echo: Any, tensor: str, error: str) -> None:
    servicer, address = echo()
    assert node(f'answer = await client.predict("m", {{ x: {tensor} }}).catch((error) => error.name)', address) == error
    assert servicer.calls == []


def test_a_safe_call_is_sent_again_when_the_server_is_unavailable(node: Node, echo: Any) -> None:
    servicer, address = echo(failures=2)
    assert node('answer = (await client.embed("m", ["a"])).served.replica', address) == "echo"
    assert len(servicer.calls) == 3


def test_no_other_code_is_tried_again(node: Node, echo: Any) -> None:
    servicer, address = echo(failures=1, code=grpc.StatusCode.INVALID_ARGUMENT)
    code = node('answer = await client.embed("m", ["a"]).catch((error) => error.code === status.INVALID_ARGUMENT)', address)
    assert code is True
    assert len(servicer.calls) == 1


@pytest.mark.parametrize(("options", "seconds"), [("{}", 30), ("{ timeoutMs: 5000 }", 5)])
def test_every_call_has_a_deadline(node: Node, echo: Any, options: str, seconds: float) -> None:
    servicer, address = echo()
    node(f'await client.embed("m", ["a"], {options}); answer = null', address)
    assert 0 < servicer.remaining_s[0] <= seconds + 1  # a timeout may be rounded up on its way


class TwoPartJob(jobs_pb2_grpc.JobServiceServicer):
    """A watched job whose stream breaks off after its second event."""

    def __init__(self) -> None:
        self.watched_after: list[int] = []

    def WatchJob(self, request: jobs.WatchJobRequest, context: grpc.ServicerContext) -> Iterator[jobs.WatchJobResponse]:
        self.watched_after.append(request.after_sequence)
        states = [jobs.JOB_STATE_QUEUED, jobs.JOB_STATE_RUNNING, jobs.JOB_STATE_RUNNING, jobs.JOB_STATE_SUCCEEDED]
        for sequence, state in enumerate(states, start=1):
            if sequence == 3 and len(self.watched_after) == 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "stopping")
            if sequence > request.after_sequence:
                yield jobs.WatchJobResponse(event=jobs.JobEvent(sequence=sequence, state=state))

    def GetJob(self, request: jobs.GetJobRequest, context: grpc.ServicerContext) -> jobs.GetJobResponse:
        return jobs.GetJobResponse(job=jobs.Job(id=request.id, state=jobs.JOB_STATE_SUCCEEDED, published="m@2"))


@pytest.fixture
def job() -> Iterator[tuple[TwoPartJob, str]]:
    servicer = TwoPartJob()
    with serving(partial(jobs_pb2_grpc.add_JobServiceServicer_to_server, servicer)) as address:
        yield servicer, address


def test_a_watch_that_breaks_off_goes_on_after_the_last_event(node: Node, job: tuple[TwoPartJob, str]) -> None:
    servicer, address = job
    sequences = node('answer = []; for await (const { sequence } of client.watchJob("j")) answer.push(sequence)', address)
    assert sequences == [1, 2, 3, 4]
    assert servicer.watched_after == [0, 2]


def test_a_reader_may_leave_a_watch_early(node: Node, job: tuple[TwoPartJob, str]) -> None:
    assert node('for await (const event of client.watchJob("j")) { answer = event.state; break; }', job[1]) == "JOB_STATE_QUEUED"


def test_waiting_for_a_job_answers_the_job_as_it_ended(node: Node, job: tuple[TwoPartJob, str]) -> None:
    ended = node('answer = await client.waitForJob("j")', job[1])
    assert (ended["id"], ended["state"], ended["published"]) == ("j", "JOB_STATE_SUCCEEDED", "m@2")


def test_the_package_carries_its_contracts(client: Path) -> None:
    packed = subprocess.run(["npm", "pack", "--dry-run", "--json"], cwd=client, capture_output=True, text=True, timeout=60, check=True)
    (package,) = json.loads(packed.stdout[packed.stdout.index("[\n") :])
    names = {file["path"] for file in package["files"]}
    assert {"index.mjs", "tensors.mjs", "protos/hone/inference/v1/inference.proto", "protos/hone/optimization/v1/jobs.proto"} <= names
    assert not any(name.endswith(".py") for name in names)


def test_embeds_through_the_running_suite(node: Node, suite: Any) -> None:
    answer = node(
        """const { vectors, served } = await client.embed("minilm", ["a cat", "a kitten", "tax law"]);
        const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
        const models = await client.listModels();
        answer = { near: dot(vectors[0], vectors[1]), far: dot(vectors[0], vectors[2]), served, models }""",
        suite.addresses,
    )
    assert answer["near"] > answer["far"]
    assert answer["served"]["model"] == "minilm"
    assert "stable" in answer["models"][0]["channels"]


def test_the_example_runs_against_the_running_suite(client: Path, suite: Any) -> None:
    command = ["node", "example.mjs", suite.addresses["inference"], "minilm"]
    done = subprocess.run(command, cwd=client, capture_output=True, text=True, timeout=60, check=True)
    near, far, served = done.stdout.splitlines()
    assert float(near.split()[0]) > float(far.split()[0])
    assert served.startswith("minilm@")


def test_an_unknown_model_is_not_found_in_the_running_suite(node: Node, suite: Any) -> None:
    assert node('answer = await client.embed("nobody", ["a"]).catch((error) => error.code === status.NOT_FOUND)', suite.addresses) is True
