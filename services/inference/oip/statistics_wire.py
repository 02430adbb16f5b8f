"""A version's counters in the terms of the statistics extension."""

from hone.oip.v1 import open_inference_pb2 as pb

from services.inference.served import ServedVersion
from services.inference.statistics import CallTimes, Sum


def statistics(name: str, served: ServedVersion) -> pb.ModelStatistics:
    """Of a version that is loaded; `name` as it was asked for."""
    assert served.engine is not None  # noqa: S101 (the caller chose those that have one)
    counted, times = served.engine.statistics, served.engine.times
    return pb.ModelStatistics(
        name=name,
        version=str(served.manifest.version),
        last_inference=times.last_call_ms,
        inference_count=counted.batch_rows,
        execution_count=counted.batches,
        inference_stats=_calls(times),
        batch_stats=[pb.InferBatchStatistics(batch_size=rows, compute_infer=_duration(ran)) for rows, ran in sorted(times.batches.items())],
    )


def _calls(times: CallTimes) -> pb.InferStatistics:
    return pb.InferStatistics(
        success=_duration(times.success),
        fail=_duration(times.fail),
        queue=_duration(times.queue),
        compute_input=_duration(times.tokenization),
        compute_infer=_duration(times.compute),
        compute_output=_duration(times.output),
        cache_hit=_duration(times.cache_hit),
        cache_miss=_duration(times.cache_miss),
    )


def _duration(found: Sum) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=found.count, ns=found.ns)
