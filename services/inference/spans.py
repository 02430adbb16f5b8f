"""The spans of a batch that has run: until then nothing is spent on them, and without traced calls nothing at all."""

from typing import TYPE_CHECKING

from services.chassis.tracing import Attributes
from services.inference.batching import Batch
from services.inference.instance import Ran
from services.inference.tickets import QueuedRow

if TYPE_CHECKING:
    from services.chassis.otlp import Trace

MOST_LINKS = 64  # more than SDKs keep of one span; a batch of thousands of calls must not hold the loop up


def trace_batch(batch: Batch[QueuedRow], ran: Ran) -> None:
    """One span for the batch, linked to every call that it answered, in the trace of the first; in each call, its wait and the run."""
    calls = _arrivals(batch)
    if not calls:
        return
    first = next(iter(calls))
    attributes: Attributes = {
        "hone.batch.rows": len(batch.rows),
        "hone.batch.padded_tokens": len(batch.rows) * batch.longest,
        "hone.batch.close_reason": str(batch.reason),
        "hone.batch.predicted_seconds": ran.predicted_s,
    }
    whole = first.record("batch", ran.begun, ran.ended, attributes, links=list(calls)[:MOST_LINKS])
    for call, arrived in calls.items():
        call.record("queue", arrived, ran.begun, {})
        call.record("compute", ran.begun, ran.ended, {"hone.batch.rows": len(batch.rows)}, links=[whole])


def _arrivals(batch: Batch[QueuedRow]) -> dict["Trace", float]:
    """The traced calls that wait for the batch, and since when; a row that another call asked for before them is older than they are."""
    calls: dict[Trace, float] = {}
    for row in batch.rows:
        for ticket, _ in row.waiters:
            call = ticket.trace
            if call is not None and call.recorded:
                calls[call] = min(calls.get(call, float("inf")), max(row.arrived, call.begun))
    return calls
