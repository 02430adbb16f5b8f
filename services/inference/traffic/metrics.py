"""What splits do, as Prometheus metrics: counted where it happens, read when Prometheus asks, gone with the split.

Calls by arm are among those by variant, in `hone_requests_total`.
"""

from collections.abc import Iterable, Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.chassis.histogram import Histogram
from services.chassis.metrics import histograms
from services.inference.traffic.live import LiveSplit
from services.inference.traffic.splits import Splits

_SPLIT = ("model", "channel")


class TrafficCollector(Collector):
    """Reads the splits at scrape time, on the metrics server's thread. Labels come from the repository: no caller makes a new one."""

    def __init__(self, splits: Splits) -> None:
        self._splits = splits

    def collect(self) -> Iterable[Metric]:
        live = self._splits.live()
        yield from _arms(live)
        copies = CounterMetricFamily("hone_shadow_calls", "Calls copied for a shadow, by what came of it.", labels=(*_SPLIT, "result"))
        flipped = CounterMetricFamily("hone_shadow_flipped_rows", "Rows whose label the shadow gave differently.", labels=_SPLIT)
        for each in live:
            if each.plan.shadow is not None:
                _shadow(each, copies, flipped)
        yield copies
        yield flipped
        for name, text in _HISTOGRAMS.items():
            yield _histograms(name, text, [each for each in live if each.plan.shadow is not None])


_HISTOGRAMS = {
    "agreement": "Agreement of a copied call's rows with the control's, 0 to 1.",
    "total_variation": "Total variation of the labels of a copied call's rows.",
    "max_abs_difference": "Largest difference of a copied call's outputs.",
}


def _arms(live: Iterable[LiveSplit]) -> Iterator[Metric]:
    out = GaugeMetricFamily("hone_arm_taken_out", "1 for an arm that a guardrail took out.", labels=(*_SPLIT, "variant"))
    share = GaugeMetricFamily("hone_arm_share", "Share of a channel's calls that an arm answers now.", labels=(*_SPLIT, "variant"))
    for each in live:
        for arm, now in each.shares().items():
            labels = (each.split.model, each.split.channel, arm)
            out.add_metric(labels, arm in each.taken_out)
            share.add_metric(labels, now)
    yield out
    yield share


def _shadow(live: LiveSplit, copies: CounterMetricFamily, flipped: CounterMetricFamily) -> None:
    labels, shadow = (live.split.model, live.split.channel), live.mine.shadow
    for result, count in (("compared", shadow.agreement.count), ("dropped", shadow.dropped), ("failed", shadow.failed)):
        copies.add_metric((*labels, result), count)
    flipped.add_metric(labels, shadow.flipped_rows)


def _histograms(name: str, text: str, live: Iterable[LiveSplit]) -> Metric:
    values: dict[tuple[str, ...], Histogram] = {(each.split.model, each.split.channel): getattr(each.copies, name) for each in live}
    return histograms(f"hone_shadow_{name}", text, _SPLIT, values)
