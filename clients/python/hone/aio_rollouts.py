"""`client.rollouts` for asyncio: the same calls, awaited."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc

from hone import rollout, rollout_status
from hone.inference.v1 import inference_pb2
from hone.repository.v1 import models_pb2

if TYPE_CHECKING:  # it makes this
    from hone.aio import Client


class Rollouts:
    """Of recommendations that published a version, by their jobs; see `hone.rollouts.Rollouts` for the methods."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    async def start(
        self,
        job_id: str,
        *,
        channel: str = rollout.CHANNEL,
        share: float | None = None,
        shadow: float = 0.0,
        guardrails: models_pb2.Guardrails | None = None,
        replace: bool = False,
    ) -> models_pb2.Traffic:
        wanted = await self._prediction(job_id)
        control, running = await self._control(wanted, channel), await self._client.models.traffic(wanted.model, channel)
        made = rollout.split(wanted, control, channel, running, share=share, shadow=shadow, guardrails=guardrails, replace=replace)
        return await self._client.models.set_traffic(wanted.model, made, channel)

    async def status(
        self,
        job_id: str,
        *,
        channel: str = rollout.CHANNEL,
        enough_calls: int = rollout_status.ENOUGH_CALLS,
        lower_is_better: Sequence[str] = (),
    ) -> rollout_status.Status:
        wanted = await self._prediction(job_id)
        control, running = await self._control(wanted, channel), await self._client.models.traffic(wanted.model, channel)
        found = await self.counted(wanted.model, channel)
        return rollout_status.status(wanted, control, running, found, enough_calls=enough_calls, lower_is_better=lower_is_better)

    async def promote(self, job_id: str, *, channel: str = rollout.CHANNEL) -> models_pb2.ModelVersion:
        wanted = await self._prediction(job_id)
        running = await self._client.models.traffic(wanted.model, channel)
        arm = rollout.promoted_arm(wanted, channel, running)
        if not arm:  # it answers copies alone
            return await self._client.models.promote(wanted.model, wanted.version, channel)
        return await self._client.models.promote_arm(wanted.model, arm, channel)

    async def back(self, job_id: str, *, channel: str = rollout.CHANNEL) -> models_pb2.ModelVersion:
        wanted = await self._prediction(job_id)
        control, running = await self._control(wanted, channel), await self._client.models.traffic(wanted.model, channel)
        if rollout.is_promoted(wanted, control, channel, running):
            return await self._client.models.roll_back(wanted.model, channel)
        await self._client.models.clear_traffic(wanted.model, channel)
        return control

    async def counted(self, model: str, channel: str = rollout.CHANNEL) -> inference_pb2.GetExperimentResponse:
        try:
            return await self._client.experiment(model, channel)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return inference_pb2.GetExperimentResponse(model=model, channel=channel, pending_reason=str(error.details()))

    async def _prediction(self, job_id: str) -> rollout.Prediction:
        return rollout.prediction(await self._client.jobs.get(job_id), await self._client.advisor.get(job_id))

    async def _control(self, wanted: rollout.Prediction, channel: str) -> models_pb2.ModelVersion:
        try:
            return await self._client.models.get(f"{wanted.model}:{channel}")
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise ValueError(rollout.no_channel(wanted, channel)) from error
            raise
