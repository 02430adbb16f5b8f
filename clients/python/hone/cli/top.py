"""`hone top`: what each version is doing now, from the counters of every replica that answers."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import grpc
import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hone.cli import show
from hone.cli.connection import client
from hone.inference.v1 import inference_pb2 as pb

COLUMNS = ("model", "variant", "calls/s", "rows/s", "p50 ms", "p99 ms", "failed", "cached", "rows/batch", "padding", "queue")
AGAIN = 2  # answers running from replicas already seen end a look: one alone may be a gateway that serves others in between
UNSEEN_LOOKS = 5  # a replica that did not answer for so many looks is gone
_ENDINGS = ("answered", "overloaded", "late", "cancelled", "unavailable", "invalid", "failed")
_FAILED = ("overloaded", "late", "unavailable", "failed")  # what the caller did itself, by going or by asking wrongly, is no failure


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(top)


def top(
    context: typer.Context,
    interval: Annotated[float, typer.Option(min=0.01, help="Seconds between looks, which rates and quantiles are of.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one table and end.")] = False,
) -> None:
    """Watch calls, latencies, batches and memory, version by version."""
    with client(context) as hone:
        fleet = Fleet(hone.statistics)
        fleet.look()
        if once:
            time.sleep(interval)
            fleet.look()
            show.console.print(fleet.tables())
            return
        with Live(fleet.tables(), console=show.console, auto_refresh=False) as live, suppress(KeyboardInterrupt):
            while True:
                time.sleep(interval)
                live.update(_after_a_look(fleet), refresh=True)


def _after_a_look(fleet: "Fleet") -> Group:
    try:
        fleet.look()
    except grpc.RpcError as error:  # it may be back at the next look
        return Group(fleet.tables(), f"[red]{escape(f'{error.code().name}: {error.details()}')}[/]")
    return fleet.tables()


@dataclass(frozen=True, slots=True)
class Look:
    """What a replica told, and when, on this machine's monotonic clock."""

    at_s: float
    told: pb.GetStatisticsResponse


class Fleet:
    """The last two looks at each replica. Behind a gateway every call may be answered by another one."""

    def __init__(self, ask: Callable[[], pb.GetStatisticsResponse], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._looks: dict[str, tuple[Look, Look]] = {}
        self._unseen: dict[str, int] = {}

    def look(self) -> None:
        """Asks until every replica has answered, as far as that shows. Raises grpc.RpcError."""
        seen: set[str] = set()
        repeated = 0
        while repeated < AGAIN:
            told = self._ask()
            if told.replica in seen:
                repeated += 1
                continue
            repeated = 0
            seen.add(told.replica)
            now = Look(self._clock(), told)
            self._looks[told.replica] = (self._looks.get(told.replica, (now, now))[1], now)
        self._forget_all_but(seen)

    def _forget_all_but(self, seen: set[str]) -> None:
        self._unseen = {name: 0 if name in seen else self._unseen.get(name, 0) + 1 for name in self._looks}
        self._looks = {name: looks for name, looks in self._looks.items() if self._unseen[name] < UNSEEN_LOOKS}

    def tables(self) -> Group:
        """A table for each replica."""
        return Group(*(_table(name, *self._looks[name]) for name in sorted(self._looks)))


def _table(replica: str, before: Look, now: Look) -> Table:
    seconds = now.at_s - before.at_s
    cpu = (now.told.cpu_seconds - before.told.cpu_seconds) / seconds if seconds else 0.0
    title = f"replica {escape(replica)}   CPU {cpu:.0%} of a core   memory {show.megabytes(now.told.resident_bytes)}"
    old = {(model.name, model.version): model for model in before.told.models}
    rows = [row for model in now.told.models for row in _rows(old.get((model.name, model.version)), model, seconds)]
    return show.table(title, COLUMNS, rows)


def _rows(before: pb.ModelStatistics | None, now: pb.ModelStatistics, seconds: float) -> Iterator[Sequence[str]]:
    """One for each variant; what is of the whole version stands on the first."""
    if before is None or before.loaded != now.loaded:  # it came in between, and counts from nothing
        before = pb.ModelStatistics()
    old = {variant.variant: variant for variant in before.variants}
    version = _version_cells(before, now)
    name = f"{now.name}@{now.version}"
    for variant in now.variants or [pb.VariantStatistics()]:
        yield (name, escape(variant.variant), *_variant_cells(old.get(variant.variant, pb.VariantStatistics()), variant, seconds), *version)
        name, version = "", ("", "", "")


def _version_cells(before: pb.ModelStatistics, now: pb.ModelStatistics) -> tuple[str, str, str]:
    batches, padded = now.batches - before.batches, now.padded_tokens - before.padded_tokens
    per_batch = f"{(now.batch_rows - before.batch_rows) / batches:.1f}" if batches else ""
    padding = f"{1 - (now.real_tokens - before.real_tokens) / padded:.0%}" if padded else ""
    return per_batch, padding, str(now.queued_rows)


def _variant_cells(before: pb.VariantStatistics, now: pb.VariantStatistics, seconds: float) -> tuple[str, ...]:
    ended = {name: getattr(now, f"{name}_requests") - getattr(before, f"{name}_requests") for name in _ENDINGS}
    calls, rows = sum(ended.values()), now.rows - before.rows
    if not calls or not seconds:
        return ("",) * 6
    return (
        f"{calls / seconds:.1f}",
        f"{rows / seconds:.1f}",
        _milliseconds(before.latencies, now.latencies, 0.5),
        _milliseconds(before.latencies, now.latencies, 0.99),
        f"{sum(ended[name] for name in _FAILED) / calls:.1%}",
        f"{(now.cached_rows - before.cached_rows) / rows:.0%}" if rows else "",
    )


def _milliseconds(before: pb.LatencyHistogram, now: pb.LatencyHistogram, share: float) -> str:
    old = before.counts or [0] * len(now.counts)
    found = quantile(now.upper_bounds_seconds, [new - was for new, was in zip(now.counts, old, strict=True)], share)
    if found is None:
        return ""
    return f"{found * 1000:.1f}" if math.isfinite(found) else f">{now.upper_bounds_seconds[-1] * 1000:.0f}"


def quantile(upper_bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value that `share` of the counted ones do not exceed, taken as evenly spread within its bucket, as Prometheus does.

    Infinite when it lies beyond the last bound, None when nothing was counted.
    """
    left = share * sum(counts)
    if not left:
        return None
    lower = 0.0
    for upper, count in zip(upper_bounds, counts, strict=False):  # the last count is of what is beyond every bound
        if count and left <= count:
            return min(upper, lower + (upper - lower) * left / count)  # the sum may round up
        left -= count
        lower = upper
    return math.inf
