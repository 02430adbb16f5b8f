"""`client.rollouts`: an advised version tried on part of the calls, watched beside its prediction, promoted or taken back."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc

from hone import rollout, rollout_status
from hone.inference.v1 import inference_pb2
from hone.repository.v1 import models_pb2

if TYPE_CHECKING:  # it makes this
    from hone.client import Client


class Rollouts:
    """Of recommendations that published a version, by their jobs. Every method raises grpc.RpcError, ValueError for what makes no sense."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def start(
        self,
        job_id: str,
        *,
        channel: str = rollout.CHANNEL,
        share: float | None = None,
        shadow: float = 0.0,
        guardrails: models_pb2.Guardrails | None = None,
        replace: bool = False,
    ) -> models_pb2.Traffic:
        """Splits the channel's calls between its version and the advised one; see `hone.rollout.split` for the arguments."""
        wanted = self._prediction(job_id)
        control, running = self._control(wanted, channel), self._client.models.traffic(wanted.model, channel)
        made = rollout.split(wanted, control, channel, running, share=share, shadow=shadow, guardrails=guardrails, replace=replace)
        return self._client.models.set_traffic(wanted.model, made, channel)

    def status(
        self,
        job_id: str,
        *,
        channel: str = rollout.CHANNEL,
        enough_calls: int = rollout_status.ENOUGH_CALLS,
        lower_is_better: Sequence[str] = (),
    ) -> rollout_status.Status:
        """What to do next, why, and the live figures beside the predicted ones; see `hone.rollout_status.status` for the arguments."""
        wanted = self._prediction(job_id)
        control, running = self._control(wanted, channel), self._client.models.traffic(wanted.model, channel)
        found = self.counted(wanted.model, channel)
        return rollout_status.status(wanted, control, running, found, enough_calls=enough_calls, lower_is_better=lower_is_better)

    def promote(self, job_id: str, *, channel: str = rollout.CHANNEL) -> models_pb2.ModelVersion:
        """Points the channel at the advised version and ends the split. Answers the version."""
        wanted = self._prediction(job_id)
        running = self._client.models.traffic(wanted.model, channel)
        arm = rollout.promoted_arm(wanted, channel, running)
        if not arm:  # it answers copies alone
            return self._client.models.promote(wanted.model, wanted.version, channel)
        return self._client.models.promote_arm(wanted.model, arm, channel)

    def back(self, job_id: str, *, channel: str = rollout.CHANNEL) -> models_pb2.ModelVersion:
        """Ends the split or, where the version was promoted, points the channel at the one before. Answers what serves then."""
        wanted = self._prediction(job_id)
        control, running = self._control(wanted, channel), self._client.models.traffic(wanted.model, channel)
        if rollout.is_promoted(wanted, control, channel, running):
            return self._client.models.roll_back(wanted.model, channel)
        self._client.models.clear_traffic(wanted.model, channel)
        return control

    def counted(self, model: str, channel: str = rollout.CHANNEL) -> inference_pb2.GetExperimentResponse:
        """What a split has counted; without arms where no replica routes by it yet, and why."""
        try:
            return self._client.experiment(model, channel)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return inference_pb2.GetExperimentResponse(model=model, channel=channel, pending_reason=str(error.details()))

    def _prediction(self, job_id: str) -> rollout.Prediction:
        return rollout.prediction(self._client.jobs.get(job_id), self._client.advisor.get(job_id))

    def _control(self, wanted: rollout.Prediction, channel: str) -> models_pb2.ModelVersion:
        try:
            return self._client.models.get(f"{wanted.model}:{channel}")
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise ValueError(rollout.no_channel(wanted, channel)) from error
            raise
