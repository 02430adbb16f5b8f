"""An interval as a message, alike in every answer."""

from hone.optimization.v1 import jobs_pb2 as pb

from services.optimization.report import Interval


def interval_message(interval: Interval | None) -> pb.Interval | None:
    """None leaves the field unset."""
    return pb.Interval(estimate=interval.estimate, low=interval.low, high=interval.high) if interval is not None else None
