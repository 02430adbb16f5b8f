"""The client for asyncio: the same calls, awaited."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import NDArray

from hone import cached, channel, folders, results, specs
from hone.aio_advisor import Advisor
from hone.aio_datasets import Datasets
from hone.aio_rollouts import Rollouts
from hone.cache.v1 import cache_pb2, cache_pb2_grpc
from hone.client import NOT_YET, PASSING, POLL_S, WATCH_TIMEOUT_S
from hone.inference.v1 import inference_pb2, inference_pb2_grpc
from hone.optimization.v1 import jobs_pb2, jobs_pb2_grpc
from hone.repository.v1 import models_pb2, models_pb2_grpc
from hone.transfers import ATTEMPTS, UPLOAD_TIMEOUT_S, off_loop, refuse_all_but_unknown, resuming_async


class Client:
    """All of Hone behind one address, or one address per service; see `hone.Client` for the arguments.

    Made and used on one event loop.
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
            target: grpc.aio.insecure_channel(target, options) for target in (targets.optimization, targets.inference, targets.cache)
        }
        self._timeout = timeout
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channels[targets.inference])
        self.models = Models(self._channels[targets.optimization], timeout)
        self.datasets = Datasets(self._channels[targets.optimization], timeout)
        self.advisor = Advisor(self._channels[targets.optimization], timeout)
        self.jobs = Jobs(self._channels[targets.optimization], timeout)
        self.rollouts = Rollouts(self)
        self.cache = CacheClient(targets.cache, connection=self._channels[targets.cache], timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channels; calls under way are cancelled."""
        await asyncio.gather(*(connection.close() for connection in self._channels.values()))

    async def embed(
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
        return results.embeddings(await self._inference.Embed(request, timeout=timeout or self._timeout))

    async def classify(
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
        return results.classifications(await self._inference.Classify(request, timeout=timeout or self._timeout))

    async def predict(
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
        return results.predictions(await self._inference.Predict(request, timeout=timeout or self._timeout))

    async def serving(self) -> inference_pb2.ListModelsResponse:
        """Versions on the replica that answers."""
        return await self._inference.ListModels(inference_pb2.ListModelsRequest(), timeout=self._timeout)

    async def wait_until_served(self, model: str, *, version: int | None = None, timeout: float = 120.0) -> inference_pb2.ModelStatistics:
        """Returns when the replica that answers serves the reference, and by `version` where that is given.

        Raises:
            TimeoutError: not within `timeout` seconds; the text says what the server answered last.
            grpc.RpcError: a failure that waiting does not mend.
        """
        end, last = time.monotonic() + timeout, ""
        while time.monotonic() < end:
            try:
                (found,) = (await self.statistics(model)).models
                if version in (None, found.version):
                    return found
                last = f"served by version {found.version}"
            except grpc.RpcError as error:
                if error.code() not in NOT_YET:
                    raise
                last = str(error.details())
            await asyncio.sleep(POLL_S)
        raise TimeoutError(f"{model}: {last}")

    async def load(self, model: str, *, timeout: float = 300.0) -> inference_pb2.LoadedModel:
        """Loads a version on the replica that answers and returns when it serves."""
        return (await self._inference.LoadModel(inference_pb2.LoadModelRequest(model=model), timeout=timeout)).model

    async def unload(self, model: str) -> None:
        """Unloads `NAME@VERSION` on the replica that answers."""
        await self._inference.UnloadModel(inference_pb2.UnloadModelRequest(model=model), timeout=self._timeout)

    async def statistics(self, model: str = "") -> inference_pb2.GetStatisticsResponse:
        """Counters of the replica that answers."""
        return await self._inference.GetStatistics(inference_pb2.GetStatisticsRequest(model=model), timeout=self._timeout)

    async def record_outcome(
        self, served: inference_pb2.Served, name: str, observed: bool | float, *, count: int = 1, idempotency_key: str = ""
    ) -> bool:
        """Records what came of an answer whose model's calls are split; see `hone.Client.record_outcome`."""
        request = specs.outcome(served, name, observed, count=count, idempotency_key=idempotency_key)
        return (await self._inference.RecordOutcome(request, timeout=self._timeout)).counted

    async def experiment(
        self, model: str, channel: str = "", *, alpha: float = 0, minimum_effect: float | None = None, power: float = 0
    ) -> inference_pb2.GetExperimentResponse:
        """What a split's arms did; see `hone.Client.experiment`."""
        request = inference_pb2.GetExperimentRequest(model=model, channel=channel, alpha=alpha, minimum_effect=minimum_effect, power=power)
        return await self._inference.GetExperiment(request, timeout=self._timeout)


class Models:
    """Versions and channels in the repository."""

    def __init__(self, connection: grpc.aio.Channel, timeout: float) -> None:
        self._stub = models_pb2_grpc.ModelServiceStub(connection)
        self._timeout = timeout

    async def push(
        self,
        folder: str | Path,
        name: str,
        *,
        task: "models_pb2.Task.ValueType" = models_pb2.TASK_UNSPECIFIED,
        channels: Sequence[str] = (),
        timeout: float = UPLOAD_TIMEOUT_S,
    ) -> models_pb2.ModelVersion:
        """Uploads a folder as a version; a broken upload goes on where it broke. Raises grpc.RpcError, FileNotFoundError."""
        head = await asyncio.to_thread(folders.header, Path(folder), name, task, channels)

        async def attempt() -> models_pb2.ModelVersion:
            requests = folders.chunks(Path(folder), head, await self._received(head.upload_id))
            return (await self._stub.UploadModel(off_loop(requests), timeout=timeout)).model

        return await resuming_async(attempt)

    async def _received(self, upload_id: str) -> Mapping[str, int]:
        try:
            return (await self._stub.GetUpload(models_pb2.GetUploadRequest(upload_id=upload_id), timeout=self._timeout)).received_bytes
        except grpc.RpcError as error:
            refuse_all_but_unknown(error)
            return {}

    async def pull(self, reference: str, folder: str | Path, *, timeout: float = UPLOAD_TIMEOUT_S) -> models_pb2.ModelVersion:
        """Downloads a version's files and checks their digests. Raises grpc.RpcError, ValueError, OSError."""
        writer = folders.FolderWriter(Path(folder))
        async for response in self._stub.DownloadModel(models_pb2.DownloadModelRequest(reference=reference), timeout=timeout):
            await asyncio.to_thread(writer.take, response)
        return await asyncio.to_thread(writer.finish)

    async def get(self, reference: str) -> models_pb2.ModelVersion:
        return (await self._stub.GetModel(models_pb2.GetModelRequest(reference=reference), timeout=self._timeout)).model

    async def list(self, name: str = "") -> AsyncIterator[models_pb2.ModelVersion]:
        """Every version, by name and number; page by page as it is read."""
        token = ""
        while True:
            page = await self._stub.ListModels(models_pb2.ListModelsRequest(name=name, page_token=token), timeout=self._timeout)
            for model in page.models:
                yield model
            token = page.next_page_token
            if not token:
                return

    async def promote(self, name: str, version: int, channel: str = "stable") -> models_pb2.ModelVersion:
        """Points a channel at a version."""
        request = models_pb2.SetChannelRequest(name=name, channel=channel, version=version)
        return (await self._stub.SetChannel(request, timeout=self._timeout)).model

    async def roll_back(self, name: str, channel: str = "stable") -> models_pb2.ModelVersion:
        """Points a channel at the version before."""
        return (await self._stub.RollBack(models_pb2.RollBackRequest(name=name, channel=channel), timeout=self._timeout)).model

    async def delete(self, name: str, version: int) -> None:
        await self._stub.DeleteVersion(models_pb2.DeleteVersionRequest(name=name, version=version), timeout=self._timeout)

    async def set_traffic(self, name: str, traffic: models_pb2.Traffic, channel: str = "") -> models_pb2.Traffic:
        """Splits a channel's calls (see `hone.specs.traffic`); answers the split with its revision."""
        request = models_pb2.SetTrafficRequest(name=name, channel=channel, traffic=traffic)
        return (await self._stub.SetTraffic(request, timeout=self._timeout)).traffic

    async def traffic(self, name: str, channel: str = "") -> models_pb2.Traffic:
        """A channel's split; without arms where its calls are not split."""
        return (await self._stub.GetTraffic(models_pb2.GetTrafficRequest(name=name, channel=channel), timeout=self._timeout)).traffic

    async def clear_traffic(self, name: str, channel: str = "") -> None:
        """Ends a channel's split: the version that it points at answers all of its calls."""
        await self._stub.ClearTraffic(models_pb2.ClearTrafficRequest(name=name, channel=channel), timeout=self._timeout)

    async def promote_arm(self, name: str, arm: str, channel: str = "") -> models_pb2.ModelVersion:
        """Points a channel at an arm's version and ends its split."""
        request = models_pb2.PromoteArmRequest(name=name, channel=channel, arm=arm)
        return (await self._stub.PromoteArm(request, timeout=self._timeout)).model


class Jobs:
    """Optimization jobs."""

    def __init__(self, connection: grpc.aio.Channel, timeout: float) -> None:
        self._stub = jobs_pb2_grpc.JobServiceStub(connection)
        self._timeout = timeout

    async def create(self, spec: jobs_pb2.JobSpec, *, request_id: str = "") -> jobs_pb2.Job:
        """Submits a job (see `hone.specs.job_spec`). Repeating it with the same `request_id` makes one job only."""
        request = jobs_pb2.CreateJobRequest(request_id=request_id or uuid.uuid4().hex, spec=spec)
        return (await self._stub.CreateJob(request, timeout=self._timeout)).job

    async def get(self, job_id: str) -> jobs_pb2.Job:
        return (await self._stub.GetJob(jobs_pb2.GetJobRequest(id=job_id), timeout=self._timeout)).job

    async def list(self, states: Sequence["jobs_pb2.JobState.ValueType"] = ()) -> AsyncIterator[jobs_pb2.Job]:
        """Newest first; page by page as it is read."""
        token = ""
        while True:
            page = await self._stub.ListJobs(jobs_pb2.ListJobsRequest(states=states, page_token=token), timeout=self._timeout)
            for job in page.jobs:
                yield job
            token = page.next_page_token
            if not token:
                return

    async def cancel(self, job_id: str) -> jobs_pb2.Job:
        return (await self._stub.CancelJob(jobs_pb2.CancelJobRequest(id=job_id), timeout=self._timeout)).job

    async def watch(self, job_id: str, *, after_sequence: int = 0) -> AsyncIterator[jobs_pb2.JobEvent]:
        """Events until the job has ended; goes on from the last one when the connection breaks. Raises grpc.RpcError."""
        failures = 0
        while True:
            request = jobs_pb2.WatchJobRequest(id=job_id, after_sequence=after_sequence)
            try:
                async for response in self._stub.WatchJob(request, timeout=WATCH_TIMEOUT_S):
                    after_sequence, failures = response.event.sequence, 0
                    yield response.event
                return
            except grpc.RpcError as error:
                failures += error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED  # nothing happened for a while: no failure
                if error.code() not in PASSING or failures >= ATTEMPTS:
                    raise
                await asyncio.sleep(0.2 * 2**failures)

    async def wait(self, job_id: str) -> jobs_pb2.Job:
        """Returns the job once it has ended."""
        async for _ in self.watch(job_id):
            pass
        return await self.get(job_id)

    async def plan(self, spec: jobs_pb2.JobSpec) -> jobs_pb2.PlanJobResponse:
        """What a job would do and about how long it would take; nothing is created."""
        return await self._stub.PlanJob(jobs_pb2.PlanJobRequest(spec=spec), timeout=self._timeout)

    async def report_page(self, job_id: str, *, live: Sequence[jobs_pb2.LiveFigures] = (), live_remark: str = "") -> str:
        """The report as one HTML page; of a job with a goal, `live` stands beside what was predicted. Raises grpc.RpcError."""
        request = jobs_pb2.GetReportPageRequest(id=job_id, live=live, live_remark=live_remark)
        return (await self._stub.GetReportPage(request, timeout=self._timeout)).html

    async def techniques(self) -> Sequence[jobs_pb2.Technique]:
        return (await self._stub.ListTechniques(jobs_pb2.ListTechniquesRequest(), timeout=self._timeout)).techniques


class CacheClient:
    """The cache service alone, for programs that keep their own bytes in it."""

    def __init__(self, address: str, *, connection: grpc.aio.Channel | None = None, timeout: float = channel.TIMEOUT_S) -> None:
        """`connection` is shared and stays open; without it the client has one of its own, which never retries: a cache is asked once."""
        self._own = grpc.aio.insecure_channel(address, channel.options(retries=False)) if connection is None else None
        shared = connection if connection is not None else self._own
        assert shared is not None  # noqa: S101 (one of the two is set)
        self._stub = cache_pb2_grpc.CacheServiceStub(shared)
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._own is not None:
            await self._own.close()

    async def get(self, namespace: str, keys: Sequence[bytes], *, timeout: float | None = None) -> list[bytes | None]:
        """Each key's value, None where there is none."""
        return cached.cached_values(await self._stub.Get(cached.get_request(namespace, keys), timeout=timeout or self._timeout))

    async def get_living(self, namespace: str, keys: Sequence[bytes], *, timeout: float | None = None) -> list[cached.Living | None]:
        """Each key's value and how long it lives on, None where there is none."""
        return cached.living(await self._stub.Get(cached.living_request(namespace, keys), timeout=timeout or self._timeout))

    async def get_or_lease(
        self, namespace: str, keys: Sequence[bytes], *, lease: float, wait: float = 0.0, timeout: float | None = None
    ) -> list[cached.Cached]:
        """Each key's value, or the right to compute it; see `hone.client.Cache.get_or_lease`."""
        request = cached.get_request(namespace, keys, lease, wait)
        return cached.cached(await self._stub.Get(request, timeout=timeout or self._timeout))

    async def put(
        self,
        namespace: str,
        entries: Mapping[bytes, bytes],
        *,
        ttl: float | None = None,
        leases: Mapping[bytes, int] | None = None,
        timeout: float | None = None,
    ) -> "list[cache_pb2.ItemStatus.ValueType]":
        """Stores entries; see `hone.client.Cache.put`."""
        request = cached.put_request(namespace, entries, ttl, leases)
        return list((await self._stub.Put(request, timeout=timeout or self._timeout)).statuses)

    async def release(self, namespace: str, leases: Mapping[bytes, int], *, timeout: float | None = None) -> None:
        """Gives leases back unused, by key, so that the next caller need not wait for their end."""
        await self._stub.Release(cached.release_request(namespace, leases), timeout=timeout or self._timeout)

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        await self._stub.Delete(cache_pb2.DeleteRequest(namespace=namespace, keys=keys), timeout=self._timeout)

    async def clear(self, namespace: str) -> int:
        """Empties a namespace; its new epoch, one more than before."""
        return (await self._stub.Clear(cache_pb2.ClearRequest(namespace=namespace), timeout=self._timeout)).epoch

    async def configure(self, namespace: str, *, ttl: float | None) -> None:
        """Sets how many seconds entries live that are put from now on without a `ttl`; None: as long as the server says."""
        await self._stub.Configure(cached.configure_request(namespace, ttl), timeout=self._timeout)

    async def watch(self, namespaces: Sequence[str] = (), *, timeout: float | None = None) -> AsyncIterator[cache_pb2.WatchResponse]:
        """What nearer caches must forget; see `hone.client.Cache.watch`. Raises grpc.RpcError."""
        stream = self._stub.Watch(cache_pb2.WatchRequest(namespaces=namespaces), timeout=timeout)
        try:
            async for told in stream:
                yield told
        finally:
            stream.cancel()

    async def stats(self) -> cache_pb2.GetStatsResponse:
        return await self._stub.GetStats(cache_pb2.GetStatsRequest(), timeout=self._timeout)
