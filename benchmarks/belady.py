"""The best that any eviction policy could have done on a trace, known once the trace has ended."""

import heapq
from collections.abc import Hashable, Sequence
from math import inf
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def most_hits(trace: Sequence[K], capacity: int) -> int:
    """Hits of the optimal policy with room for `capacity` entries of one size, which may also keep nothing of a miss; O(n log n).

    It always drops the entry whose next use is farthest (L. A. Belady, "A study of replacement algorithms for a virtual-storage
    computer", 1966); of what missed just now too, since a cache need not keep it.
    """
    kept: dict[K, float] = {}  # each entry's next use
    farthest: list[tuple[float, int]] = []  # a heap of (next use negated, place in the trace); uses that have passed are left in it
    hits = 0
    for place, (key, following) in enumerate(zip(trace, _next_uses(trace), strict=True)):
        hits += key in kept
        kept[key] = following
        heapq.heappush(farthest, (-following, place))
        if len(kept) > capacity:
            _drop_farthest(kept, farthest, trace)
    return hits


def _next_uses(trace: Sequence[K]) -> list[float]:
    """For each place in the trace the next one with the same key; infinite after the last."""
    seen: dict[K, int] = {}
    uses = [inf] * len(trace)
    for place in range(len(trace) - 1, -1, -1):
        uses[place] = seen.get(trace[place], inf)
        seen[trace[place]] = place
    return uses


def _drop_farthest(kept: dict[K, float], farthest: list[tuple[float, int]], trace: Sequence[K]) -> None:
    while True:
        use, place = heapq.heappop(farthest)
        if kept.get(trace[place]) == -use:
            del kept[trace[place]]
            return
