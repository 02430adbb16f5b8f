"""Which parts stay: counting and ranking alone, no tensor of a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Aim:
    """`ratio` of the parts go; what stays is a multiple of `multiple`, or everything."""

    ratio: float
    multiple: int = 1

    def kept(self, count: int, share: float = 1.0) -> int:
        """How many of `count` stay once `share` of the aim is reached; may be 0, which the caller refuses."""
        removed = round(count * self.ratio * share)
        if not removed:
            return count
        kept = count - removed
        rounded = round(kept / self.multiple) * self.multiple
        return min(rounded, count) if rounded or not kept else min(self.multiple, count)


def keep_best(scores: Tensor, kept: int) -> Tensor:
    """The positions of the `kept` highest scores, ascending; of equal ones the earlier stays."""
    order = torch.sort(scores, descending=True, stable=True).indices[:kept]
    return order.sort().values


def keep_per_layer(scores: Sequence[Tensor], counts: Sequence[int], aim: Aim, share: float) -> list[Tensor]:
    """`counts` are those before the first cut: the shares of several iterations then add up to the aim exactly."""
    return [keep_best(values, min(aim.kept(count, share), len(values))) for values, count in zip(scores, counts, strict=True)]


def keep_globally(scores: Sequence[Tensor], counts: Sequence[int], aim: Aim, share: float, *, comparable: bool) -> list[Tensor]:
    """As many stay in all as `keep_per_layer` would leave, where they score best; `multiple` of them, at least, in every layer.

    Scores that are not `comparable` among layers (norms depend on a layer's scale) are divided by their layer's mean first.
    """
    budget = sum(min(aim.kept(count, share), len(values)) for values, count in zip(scores, counts, strict=True))
    leveled = [values if comparable else values / values.mean().clamp(min=1e-12) for values in scores]
    kept = [min(aim.multiple, len(values)) for values in scores]
    gains = sorted(_steps(leveled, kept, aim.multiple), key=lambda step: (-step[0], step[1], step[2]))
    for _, layer, start in gains:
        size = min(aim.multiple, len(scores[layer]) - start)
        if sum(kept) + size <= budget and kept[layer] == start:
            kept[layer] += size
    return [keep_best(values, count) for values, count in zip(scores, kept, strict=True)]


def _steps(scores: Sequence[Tensor], first: Sequence[int], multiple: int) -> list[tuple[float, int, int]]:
    """(mean score, layer, parts before it) of each further `multiple` parts of a layer, best first within a layer."""
    found = []
    for layer, (values, start) in enumerate(zip(scores, first, strict=True)):
        ordered = values.sort(descending=True).values
        chunks = range(start, len(values), multiple)
        found += [(float(ordered[position : position + multiple].mean()), layer, position) for position in chunks]
    return found


def spell(positions: Sequence[int]) -> str:
    """Ascending positions as ranges: `0-3,5`."""
    ranges: list[list[int]] = []
    for position in positions:
        if ranges and position == ranges[-1][1] + 1:
            ranges[-1][1] = position
        else:
            ranges.append([position, position])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
