"""Between the messages of a report's page and our own values."""

import math

from hone.optimization.v1 import jobs_pb2 as pb

from services.chassis.faults import InvalidField
from services.optimization.page import Live, LiveArm

_MOST_ARMS = 16
_MOST_NAME, _MOST_REMARK = 64, 2000  # characters


def live_from(request: pb.GetReportPageRequest) -> Live:
    """Raises InvalidField."""
    if len(request.live) > _MOST_ARMS:
        raise InvalidField("live", f"at most {_MOST_ARMS} arms, not {len(request.live)}")
    if len(request.live_remark) > _MOST_REMARK:
        raise InvalidField("live_remark", f"must be at most {_MOST_REMARK} characters")
    return Live(tuple(_arm(arm, f"live[{index}]") for index, arm in enumerate(request.live)), request.live_remark)


def _arm(message: pb.LiveFigures, field: str) -> LiveArm:
    if not 0 < len(message.arm) <= _MOST_NAME:
        raise InvalidField(f"{field}.arm", f"must be 1 to {_MOST_NAME} characters")
    for name in ("version", "calls"):
        if (count := getattr(message, name)) < 0:
            raise InvalidField(f"{field}.{name}", f"must be 0 or more, not {count}")
    for name in ("error_rate", "p50_ms", "p99_ms", "rows_per_second"):
        value: float = getattr(message, name)
        if not math.isfinite(value) or value < 0:
            raise InvalidField(f"{field}.{name}", f"must be a number from 0 on, not {value}")
    if message.error_rate > 1:
        raise InvalidField(f"{field}.error_rate", f"must be a share of calls, at most 1, not {message.error_rate:g}")
    return LiveArm(
        arm=message.arm,
        version=message.version,
        calls=message.calls,
        error_rate=message.error_rate,
        p50_ms=message.p50_ms,
        p99_ms=message.p99_ms,
        rows_per_second=message.rows_per_second,
    )
