"""The synchronous client."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import NDArray

from hone import cached, channel, folders, results, specs
from hone.advisor import Advisor
from hone.cache.v1 import cache_pb2, cache_pb2_grpc
from hone.datasets import Datasets
from hone.inference.v1 import inference_pb2, inference_pb2_grpc
from hone.optimization.v1 import jobs_pb2, jobs_pb2_grpc
from hone.repository.v1 import models_pb2, models_pb2_grpc
from hone.rollouts import Rollouts
from hone.transfers import ATTEMPTS, UPLOAD_TIMEOUT_S, Progress, refuse_all_but_unknown, resuming

WATCH_TIMEOUT_S = 600.0  # of one stream; watching goes on with the next
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
NOT_YET = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND)  # a version on its way to a replica
POLL_S = 0.2


class Client:
    """All of Hone behind one address, or one address per service.

    Args:
        address: `host:port` of a gateway, or of whatever service has no address of its own; default `HONE_ADDRESS`, else the
            ports of `python -m services` on this machine.
        timeout: seconds for a call that is given none.
        retries: repeat safe calls that failed for a passing reason.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        optimization: str | None = None,
        inference: str | None = None,
        cache: str | None = None,
        timeout: float = channel.TIMEOUT_S,
        retries: bool = True,
    ) -> None:
        targets = channel.addresses(address, optimization=optimization, inference=inference, cache=cache)
        options = channel.options(retries=retries)
        self._channels = {
            target: grpc.insecure_channel(target, options) for target in (targets.optimization, targets.inference, targets.cache)
        }
        self._timeout = timeout
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channels[targets.inference])
        self.models = Models(self._channels[targets.optimization], timeout)
        self.datasets = Datasets(self._channels[targets.optimization], timeout)
        self.advisor = Advisor(self._channels[targets.optimization], timeout)
        self.jobs = Jobs(self._channels[targets.optimization], timeout)
        self.rollouts = Rollouts(self)
        self.cache = Cache(self._channels[targets.cache], timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channels; calls under way are cancelled."""
        for connection in self._channels.values():
            connection.close()

    def embed(
        self,
        model: str,
        texts: Sequence[str],
        *,
        truncate: bool = False,
        bypass_cache: bool = False,
        priority: int = 0,
        sticky_key: str = "",
        timeout: float | None = None,
    ) -> results.Embeddings:
        """Vectors of texts. Raises grpc.RpcError."""
        options = inference_pb2.CallOptions(truncate=truncate, bypass_cache=bypass_cache, priority=priority, sticky_key=sticky_key)
        request = inference_pb2.EmbedRequest(model=model, texts=texts, options=options)
        return results.embeddings(self._inference.Embed(request, timeout=timeout or self._timeout))

    def classify(
        self,
        model: str,
        texts: Sequence[str],
        *,
        top_k: int = 0,
        truncate: bool = False,
        bypass_cache: bool = False,
        priority: int = 0,
        sticky_key: str = "",
        timeout: float | None = None,
    ) -> results.Classifications:
        """Labels of texts, the `top_k` most probable of each (0: all). Raises grpc.RpcError."""
        options = inference_pb2.CallOptions(truncate=truncate, bypass_cache=bypass_cache, priority=priority, sticky_key=sticky_key)
        request = inference_pb2.ClassifyRequest(model=model, texts=texts, top_k=top_k, options=options)
        return results.classifications(self._inference.Classify(request, timeout=timeout or self._timeout))

    def predict(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str] = (),
        *,
        bypass_cache: bool = False,
        priority: int = 0,
        sticky_key: str = "",
        timeout: float | None = None,
    ) -> results.Predictions:
        """Named arrays to named arrays, rows first. Raises grpc.RpcError, TypeError for a dtype that cannot be sent."""
        options = inference_pb2.CallOptions(bypass_cache=bypass_cache, priority=priority, sticky_key=sticky_key)
        request = results.predict_request(model, inputs, tuple(outputs), options)
        return results.predictions(self._inference.Predict(request, timeout=timeout or self._timeout))

    def serving(self) -> inference_pb2.ListModelsResponse:
        """Versions on the replica that answers."""
        return self._inference.ListModels(inference_pb2.ListModelsRequest(), timeout=self._timeout)

    def wait_until_served(self, model: str, *, version: int | None = None, timeout: float = 120.0) -> inference_pb2.ModelStatistics:
        """Returns when the replica that answers serves the reference, and by `version` where that is given.

        Raises:
            TimeoutError: not within `timeout` seconds; the text says what the server answered last.
            grpc.RpcError: a failure that waiting does not mend.
        """
        end, last = time.monotonic() + timeout, ""
        while time.monotonic() < end:
            try:
                (found,) = (self.statistics(model)).models
                if version in (None, found.version):
                    return found
                last = f"served by version {found.version}"
            except grpc.RpcError as error:
                if error.code() not in NOT_YET:
                    raise
                last = str(error.details())
            time.sleep(POLL_S)
        raise TimeoutError(f"{model}: {last}")

    def load(self, model: str, *, timeout: float = 300.0) -> inference_pb2.LoadedModel:
        """Loads a version on the replica that answers and returns when it serves."""
        return self._inference.LoadModel(inference_pb2.LoadModelRequest(model=model), timeout=timeout).model

    def unload(self, model: str) -> None:
        """Unloads `NAME@VERSION` on the replica that answers."""
        self._inference.UnloadModel(inference_pb2.UnloadModelRequest(model=model), timeout=self._timeout)

    def statistics(self, model: str = "") -> inference_pb2.GetStatisticsResponse:
        """Counters of the replica that answers."""
        return self._inference.GetStatistics(inference_pb2.GetStatisticsRequest(model=model), timeout=self._timeout)

    def record_outcome(
        self, served: inference_pb2.Served, name: str, observed: bool | float, *, count: int = 1, idempotency_key: str = ""
    ) -> bool:
        """Records what came of an answer whose model's calls are split: a success or none, or a value.

        Args:
            served: of the answer; it tells the arm.
            name: what is measured, such as `click`.
            count: how many observations of this kind.
            idempotency_key: the same key again is not counted.

        Returns whether it was counted. Raises grpc.RpcError.
        """
        request = specs.outcome(served, name, observed, count=count, idempotency_key=idempotency_key)
        return self._inference.RecordOutcome(request, timeout=self._timeout).counted

    def experiment(
        self, model: str, channel: str = "", *, alpha: float = 0, minimum_effect: float | None = None, power: float = 0
    ) -> inference_pb2.GetExperimentResponse:
        """What a split's arms did: calls, latency, outcomes with intervals that hold at every look, and the shadow's agreement.

        Args:
            alpha: chance of a false alarm over the experiment's life; 0: the server's default.
            minimum_effect: asks how many outcomes a test at a fixed horizon needs to find a difference of this size.
            power: the chance to find it; 0: the server's default.

        Raises grpc.RpcError.
        """
        request = inference_pb2.GetExperimentRequest(model=model, channel=channel, alpha=alpha, minimum_effect=minimum_effect, power=power)
        return self._inference.GetExperiment(request, timeout=self._timeout)


class Models:
    """Versions and channels in the repository."""

    def __init__(self, connection: grpc.Channel, timeout: float) -> None:
        self._stub = models_pb2_grpc.ModelServiceStub(connection)
        self._timeout = timeout

    def push(
        self,
        folder: str | Path,
        name: str,
        *,
        task: "models_pb2.Task.ValueType" = models_pb2.TASK_UNSPECIFIED,
        channels: Sequence[str] = (),
        progress: Progress | None = None,
        timeout: float = UPLOAD_TIMEOUT_S,
    ) -> models_pb2.ModelVersion:
        """Uploads a folder as a version; a broken upload goes on where it broke. Raises grpc.RpcError, FileNotFoundError."""
        head = folders.header(Path(folder), name, task, channels)

        def attempt() -> models_pb2.ModelVersion:
            requests = _counted(folders.chunks(Path(folder), head, self._received(head.upload_id)), head, progress)
            return self._stub.UploadModel(requests, timeout=timeout).model

        return resuming(attempt, ATTEMPTS)

    def _received(self, upload_id: str) -> Mapping[str, int]:
        try:
            return self._stub.GetUpload(models_pb2.GetUploadRequest(upload_id=upload_id), timeout=self._timeout).received_bytes
        except grpc.RpcError as error:
            refuse_all_but_unknown(error)
            return {}

    def pull(
        self, reference: str, folder: str | Path, *, progress: Progress | None = None, timeout: float = UPLOAD_TIMEOUT_S
    ) -> models_pb2.ModelVersion:
        """Downloads a version's files and checks their digests. Raises grpc.RpcError, ValueError, OSError."""
        writer, done = folders.FolderWriter(Path(folder)), 0
        for response in self._stub.DownloadModel(models_pb2.DownloadModelRequest(reference=reference), timeout=timeout):
            done += writer.take(response)
            if progress is not None and response.WhichOneof("part") == "chunk":
                progress(done, done)
        return writer.finish()

    def get(self, reference: str) -> models_pb2.ModelVersion:
        return self._stub.GetModel(models_pb2.GetModelRequest(reference=reference), timeout=self._timeout).model

    def list(self, name: str = "") -> Iterator[models_pb2.ModelVersion]:
        """Every version, by name and number; page by page as it is read."""
        token = ""
        while True:
            page = self._stub.ListModels(models_pb2.ListModelsRequest(name=name, page_token=token), timeout=self._timeout)
            yield from page.models
            token = page.next_page_token
            if not token:
                return

    def promote(self, name: str, version: int, channel: str = "stable") -> models_pb2.ModelVersion:
        """Points a channel at a version."""
        request = models_pb2.SetChannelRequest(name=name, channel=channel, version=version)
        return self._stub.SetChannel(request, timeout=self._timeout).model

    def roll_back(self, name: str, channel: str = "stable") -> models_pb2.ModelVersion:
        """Points a channel at the version before."""
        return self._stub.RollBack(models_pb2.RollBackRequest(name=name, channel=channel), timeout=self._timeout).model

    def delete(self, name: str, version: int) -> None:
        self._stub.DeleteVersion(models_pb2.DeleteVersionRequest(name=name, version=version), timeout=self._timeout)

    def set_traffic(self, name: str, traffic: models_pb2.Traffic, channel: str = "") -> models_pb2.Traffic:
        """Splits a channel's calls (see `hone.specs.traffic`); answers the split with its revision."""
        request = models_pb2.SetTrafficRequest(name=name, channel=channel, traffic=traffic)
        return self._stub.SetTraffic(request, timeout=self._timeout).traffic

    def traffic(self, name: str, channel: str = "") -> models_pb2.Traffic:
        """A channel's split; without arms where its calls are not split."""
        return self._stub.GetTraffic(models_pb2.GetTrafficRequest(name=name, channel=channel), timeout=self._timeout).traffic

    def clear_traffic(self, name: str, channel: str = "") -> None:
        """Ends a channel's split: the version that it points at answers all of its calls."""
        self._stub.ClearTraffic(models_pb2.ClearTrafficRequest(name=name, channel=channel), timeout=self._timeout)

    def promote_arm(self, name: str, arm: str, channel: str = "") -> models_pb2.ModelVersion:
        """Points a channel at an arm's version and ends its split."""
        request = models_pb2.PromoteArmRequest(name=name, channel=channel, arm=arm)
        return self._stub.PromoteArm(request, timeout=self._timeout).model


class Jobs:
    """Optimization jobs."""

    def __init__(self, connection: grpc.Channel, timeout: float) -> None:
        self._stub = jobs_pb2_grpc.JobServiceStub(connection)
        self._timeout = timeout

    def create(self, spec: jobs_pb2.JobSpec, *, request_id: str = "") -> jobs_pb2.Job:
        """Submits a job (see `hone.specs.job_spec`). Repeating it with the same `request_id` makes one job only."""
        request = jobs_pb2.CreateJobRequest(request_id=request_id or uuid.uuid4().hex, spec=spec)
        return self._stub.CreateJob(request, timeout=self._timeout).job

    def get(self, job_id: str) -> jobs_pb2.Job:
        return self._stub.GetJob(jobs_pb2.GetJobRequest(id=job_id), timeout=self._timeout).job

    def list(self, states: Sequence["jobs_pb2.JobState.ValueType"] = ()) -> Iterator[jobs_pb2.Job]:
        """Newest first; page by page as it is read."""
        token = ""
        while True:
            page = self._stub.ListJobs(jobs_pb2.ListJobsRequest(states=states, page_token=token), timeout=self._timeout)
            yield from page.jobs
            token = page.next_page_token
            if not token:
                return

    def cancel(self, job_id: str) -> jobs_pb2.Job:
        return self._stub.CancelJob(jobs_pb2.CancelJobRequest(id=job_id), timeout=self._timeout).job

    def watch(self, job_id: str, *, after_sequence: int = 0) -> Iterator[jobs_pb2.JobEvent]:
        """Events until the job has ended; goes on from the last one when the connection breaks. Raises grpc.RpcError."""
        failures = 0
        while True:
            request = jobs_pb2.WatchJobRequest(id=job_id, after_sequence=after_sequence)
            try:
                for response in self._stub.WatchJob(request, timeout=WATCH_TIMEOUT_S):
                    after_sequence, failures = response.event.sequence, 0
                    yield response.event
                return
            except grpc.RpcError as error:
                failures += error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED  # nothing happened for a while: no failure
                if error.code() not in PASSING or failures >= ATTEMPTS:
                    raise
                time.sleep(0.2 * 2**failures)

    def wait(self, job_id: str) -> jobs_pb2.Job:
        """Returns the job once it has ended."""
        for _ in self.watch(job_id):
            pass
        return self.get(job_id)

    def plan(self, spec: jobs_pb2.JobSpec) -> jobs_pb2.PlanJobResponse:
        """What a job would do and about how long it would take; nothing is created."""
        return self._stub.PlanJob(jobs_pb2.PlanJobRequest(spec=spec), timeout=self._timeout)

    def report_page(self, job_id: str, *, live: Sequence[jobs_pb2.LiveFigures] = (), live_remark: str = "") -> str:
        """The report as one HTML page; of a job with a goal, `live` stands beside what was predicted. Raises grpc.RpcError."""
        request = jobs_pb2.GetReportPageRequest(id=job_id, live=live, live_remark=live_remark)
        return self._stub.GetReportPage(request, timeout=self._timeout).html

    def techniques(self) -> Sequence[jobs_pb2.Technique]:
        return self._stub.ListTechniques(jobs_pb2.ListTechniquesRequest(), timeout=self._timeout).techniques


class Cache:
    """The cache service, for programs that keep their own bytes in it."""

    def __init__(self, connection: grpc.Channel, timeout: float) -> None:
        self._stub = cache_pb2_grpc.CacheServiceStub(connection)
        self._timeout = timeout

    def get(self, namespace: str, keys: Sequence[bytes], *, timeout: float | None = None) -> "list[bytes | None]":
        """Each key's value, None where there is none."""
        return cached.cached_values(self._stub.Get(cached.get_request(namespace, keys), timeout=timeout or self._timeout))

    def get_living(self, namespace: str, keys: Sequence[bytes], *, timeout: float | None = None) -> "list[cached.Living | None]":
        """Each key's value and how many seconds it lives on, None where there is none."""
        return cached.living(self._stub.Get(cached.living_request(namespace, keys), timeout=timeout or self._timeout))

    def get_or_lease(
        self, namespace: str, keys: Sequence[bytes], *, lease: float, wait: float = 0.0, timeout: float | None = None
    ) -> "list[cached.Cached]":
        """Each key's value, or the right to compute it for `lease` seconds.

        Where another caller has that right, the call waits for at most `wait` seconds, and until its timeout, for what it stores.
        """
        request = cached.get_request(namespace, keys, lease, wait)
        return cached.cached(self._stub.Get(request, timeout=timeout or self._timeout))

    def put(
        self,
        namespace: str,
        entries: Mapping[bytes, bytes],
        *,
        ttl: float | None = None,
        leases: Mapping[bytes, int] | None = None,
        timeout: float | None = None,
    ) -> "list[cache_pb2.ItemStatus.ValueType]":
        """Stores entries for `ttl` seconds, else for as long as the namespace or the server says; each one's status, in order.

        An entry with a lease (of `get_or_lease`) is stored only while that one is held, which ends with it.
        """
        request = cached.put_request(namespace, entries, ttl, leases)
        return list(self._stub.Put(request, timeout=timeout or self._timeout).statuses)

    def release(self, namespace: str, leases: Mapping[bytes, int], *, timeout: float | None = None) -> None:
        """Gives leases back unused, by key, so that the next caller need not wait for their end."""
        self._stub.Release(cached.release_request(namespace, leases), timeout=timeout or self._timeout)

    def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        self._stub.Delete(cache_pb2.DeleteRequest(namespace=namespace, keys=keys), timeout=self._timeout)

    def clear(self, namespace: str) -> int:
        """Empties a namespace; its new epoch, one more than before."""
        return self._stub.Clear(cache_pb2.ClearRequest(namespace=namespace), timeout=self._timeout).epoch

    def configure(self, namespace: str, *, ttl: float | None) -> None:
        """Sets how many seconds entries live that are put from now on without a `ttl`; None: as long as the server says."""
        self._stub.Configure(cached.configure_request(namespace, ttl), timeout=self._timeout)

    def watch(self, namespaces: Sequence[str] = (), *, timeout: float | None = None) -> Iterator[cache_pb2.WatchResponse]:
        """What nearer caches must forget, of all namespaces where none is named; `began` first.

        It goes on until the caller closes it or the service stops. A watch that breaks has missed something: begin again, and forget all.

        Raises grpc.RpcError.
        """
        stream = self._stub.Watch(cache_pb2.WatchRequest(namespaces=namespaces), timeout=timeout)
        try:
            yield from stream
        finally:
            stream.cancel()

    def stats(self) -> cache_pb2.GetStatsResponse:
        return self._stub.GetStats(cache_pb2.GetStatsRequest(), timeout=self._timeout)


def _counted(
    requests: Iterator[models_pb2.UploadModelRequest], head: models_pb2.UploadHeader, progress: Progress | None
) -> Iterator[models_pb2.UploadModelRequest]:
    total = sum(entry.size_bytes for entry in head.files)
    sizes = {entry.path: entry.size_bytes for entry in head.files}
    before: dict[str, int] = {}  # bytes of files that come before the current one, by path
    running = 0
    for path, size in sizes.items():
        before[path] = running
        running += size
    for request in requests:
        yield request
        if progress is not None and request.WhichOneof("part") == "chunk":
            progress(before[request.chunk.path] + request.chunk.offset + len(request.chunk.data), total)


__all__ = ["Cache", "Client", "Datasets", "Jobs", "Models", "specs"]
