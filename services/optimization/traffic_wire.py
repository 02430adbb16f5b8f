"""Between the contract's traffic and the repository's."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from hone.repository.v1 import models_pb2 as pb

from services.chassis.faults import InvalidField
from services.optimization import conversion
from services.repository.references import DEFAULT_CHANNEL, Reference, check_channel, check_name
from services.repository.traffic import Guardrails, Plan, Traffic

_BOUNDS = ("max_error_rate", "max_p99_ratio", "min_agreement")


def reference_from(name: str, channel: str) -> Reference:
    """A channel, `stable` where it is empty. Raises InvalidField."""
    conversion.named("name", check_name, name)
    return Reference(name, channel=conversion.named("channel", check_channel, channel or DEFAULT_CHANNEL))


def plan_from(message: pb.Traffic) -> Plan:
    """Raises InvalidField."""
    _refuse_unknown(message, "traffic")
    return conversion.checked("traffic", lambda: Plan.model_validate(_plan(message)))


def _plan(message: pb.Traffic) -> dict[str, Any]:
    guardrails = {name: getattr(message.guardrails, name) for name in _BOUNDS if message.guardrails.HasField(name)}  # type: ignore[arg-type]
    if message.guardrails.min_calls:
        guardrails["min_calls"] = message.guardrails.min_calls
    return {
        "experiment": message.experiment,
        "arms": tuple({"name": arm.name, "version": arm.version, "weight": arm.weight} for arm in message.arms),
        "shadow": {"version": message.shadow.version, "share": message.shadow.share} if message.HasField("shadow") else None,
        "guardrails": guardrails,
    }


def _refuse_unknown(message: Message, path: str) -> None:
    """A guardrail that this server does not know of would be one that does not hold. Raises InvalidField."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise InvalidField(path, f"this server knows no field {unknown[0].field_number} of it")
    for field, value in message.ListFields():
        if isinstance(value, Message):
            _refuse_unknown(value, f"{path}.{field.name}")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for index, part in enumerate(value):
                _refuse_unknown(part, f"{path}.{field.name}[{index}]")


def traffic_message(traffic: Traffic | None) -> pb.Traffic:
    """Empty for None and for a split that has ended."""
    plan = traffic.plan if traffic is not None else None
    if traffic is None or plan is None:
        return pb.Traffic()
    return pb.Traffic(
        experiment=plan.experiment,
        arms=[pb.Arm(name=arm.name, version=arm.version, weight=arm.weight) for arm in plan.arms],
        shadow=pb.Shadow(version=plan.shadow.version, share=plan.shadow.share) if plan.shadow is not None else None,
        guardrails=_guardrails(plan.guardrails),
        revision=traffic.revision,
    )


def _guardrails(guardrails: Guardrails) -> pb.Guardrails:
    return pb.Guardrails(
        max_error_rate=guardrails.max_error_rate,
        max_p99_ratio=guardrails.max_p99_ratio,
        min_agreement=guardrails.min_agreement,
        min_calls=guardrails.min_calls,
    )
