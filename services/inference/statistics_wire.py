"""Statistics as the contract's messages."""

from hone.inference.v1 import inference_pb2 as pb

from services.inference.answers import Ledger
from services.inference.economics import Economics
from services.inference.variants import Ending, VariantCounts, Variants


def variants(found: Variants) -> list[pb.VariantStatistics]:
    """By name."""
    return [_variant(name, found.counts[name]) for name in sorted(found.counts)]


def _variant(name: str, counts: VariantCounts) -> pb.VariantStatistics:
    seconds = counts.seconds
    return pb.VariantStatistics(
        variant=name,
        answered_requests=counts.calls[Ending.ANSWERED],
        overloaded_requests=counts.calls[Ending.OVERLOADED],
        late_requests=counts.calls[Ending.LATE],
        cancelled_requests=counts.calls[Ending.CANCELLED],
        unavailable_requests=counts.calls[Ending.UNAVAILABLE],
        invalid_requests=counts.calls[Ending.INVALID],
        failed_requests=counts.calls[Ending.FAILED],
        rows=counts.rows,
        cached_rows=counts.cached_rows,
        latencies=pb.LatencyHistogram(upper_bounds_seconds=seconds.bounds, counts=seconds.counts, sum_seconds=seconds.sum),
    )


def lookups(ledger: Ledger) -> list[pb.LookupStatistics]:
    """Of both layers."""
    return [_lookups("memory", ledger.memory), _lookups("shared", ledger.shared)]


def _lookups(layer: str, economics: Economics) -> pb.LookupStatistics:
    return pb.LookupStatistics(
        layer=layer,
        on=economics.on,
        reason=economics.reason,
        lookup_seconds_per_row=economics.lookup_s,
        saved_seconds_per_row=economics.saved_s,
    )
