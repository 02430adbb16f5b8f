"""The serving settings that are worth trying for a machine and its traffic, as they stand in a version's manifest."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]

# Of the service's defaults: 32 rows and 4096 padded tokens, a quarter of a second.
_BATCHES = ((8, 1024), (16, 2048), (64, 8192), (128, 16384))
_MAX_AGES_S = (0.05, 1.0)
_BUCKETS = (4, 8)


@dataclass(frozen=True, slots=True)
class Knob:
    """What is set together, and what it may be set to; as it was is always compared."""

    name: str
    candidates: tuple[Settings, ...]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What makes settings worth trying: the machine's cores, the rows' lengths in tokens, and how many rows may wait at once."""

    cores: int
    lengths: tuple[int, ...] = ()
    most_waiting_rows: int | None = None  # None: no bound is known
    may_remember: bool = True


def knobs(conditions: Conditions) -> tuple[Knob, ...]:
    """Those that move most come first: the ones after them are tried on top of what they brought."""
    found = (
        Knob("parallelism", tuple(_divisions(conditions.cores))),
        Knob("batch budget", tuple(_budgets(conditions))),
        Knob("batching", tuple(_batchings(conditions.lengths))),
        Knob("remembering", ({"remember": False},) if conditions.may_remember else ()),
        Knob("delay", tuple({"max_age_s": age_s} for age_s in _MAX_AGES_S)),
    )
    return tuple(knob for knob in found if knob.candidates)


def _divisions(cores: int) -> Iterator[Settings]:
    """All threads in one batch, a batch on each core, and between. On other cores they mean nothing, so that these are told."""
    counts = [1 << power for power in range(cores.bit_length())]
    if cores > 1:
        for instances in sorted({*counts, cores}):
            yield {"instances": instances, "threads": cores // instances, "cores": cores}


def _budgets(conditions: Conditions) -> Iterator[Settings]:
    """Smaller ones, and larger ones where so many rows can wait that they fill."""
    for rows, tokens in _BATCHES:
        if conditions.most_waiting_rows is None or rows < 2 * conditions.most_waiting_rows:
            yield {"batch_rows": rows, "batch_tokens": tokens}


def _batchings(lengths: Sequence[int]) -> Iterator[Settings]:
    """Buckets that hold equal shares of the rows: a table of round lengths puts most rows of short texts into one of them."""
    yield {"batching": "off"}
    if len(set(lengths)) > 1:
        yield {"batching": "first-come"}
        tables = {buckets(lengths, count) for count in _BUCKETS}
        yield from ({"batching": "fixed-buckets", "buckets": list(table)} for table in sorted(tables, key=len) if len(table) > 1)


def buckets(lengths: Sequence[int], count: int) -> tuple[int, ...]:
    """Ascending upper bounds of at most `count` buckets that hold equal shares of the rows, the longest row in the last."""
    ordered = sorted(lengths)
    return tuple(sorted({ordered[math.ceil(len(ordered) * part / count) - 1] for part in range(1, count + 1)}))
