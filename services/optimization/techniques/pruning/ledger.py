"""What was cut, in the positions of the model as it came, whatever was cut before."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from services.optimization.techniques.pruning.parts import Parts
from services.optimization.techniques.pruning.selection import spell


@dataclass
class Entry:
    """One place. `importance` [before] is that of the first scoring, when nothing was cut."""

    kind: str
    place: str
    before: int
    importance: Tensor
    kept: list[int]

    def cut(self, keep: Tensor) -> None:
        """`keep` counts among those that are left."""
        self.kept = [self.kept[position] for position in keep.tolist()]

    @property
    def removed_share(self) -> float:
        """Of the place's importance."""
        total = float(self.importance.sum())
        return 1 - float(self.importance[self.kept].sum()) / total if total > 0 else 0.0

    def row(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "kind": self.kind,
            "before": self.before,
            "after": len(self.kept),
            "importance_removed": round(self.removed_share, 6),
        }


@dataclass
class Ledger:
    """Entries by kind, in the order of the places that are left."""

    entries: dict[str, list[Entry]] = field(default_factory=dict)

    def open(self, kind: str, places: Sequence[Parts], scores: Sequence[Tensor]) -> None:
        """Remembers places at their first scoring."""
        if kind not in self.entries:
            pairs = zip(places, scores, strict=True)
            self.entries[kind] = [Entry(kind, p.place, p.count, score, list(range(p.count))) for p, score in pairs]

    def counts(self, kind: str) -> list[int]:
        return [entry.before for entry in self.entries[kind]]

    def cut(self, kind: str, keeps: Sequence[Tensor]) -> None:
        for entry, keep in zip(self.entries[kind], keeps, strict=True):
            entry.cut(keep)

    def drop_layers(self, kinds: Sequence[str], keep: Tensor) -> None:
        """Forgets what belonged to layers that are gone."""
        for kind in set(kinds) & self.entries.keys():
            self.entries[kind] = [self.entries[kind][index] for index in keep.tolist()]

    def notes(self) -> dict[str, Any]:
        """`cuts`, a table; `kept`, the positions by place; `sensitivity`, the share of a place's importance that went, worst first."""
        found = [entry for entries in self.entries.values() for entry in entries]
        lost = sorted(found, key=lambda entry: -entry.removed_share)
        return {
            "cuts": [entry.row() for entry in found],
            "kept": {f"{entry.place} {entry.kind}": spell(entry.kept) for entry in found},
            "sensitivity": {f"{entry.place} {entry.kind}": round(entry.removed_share, 6) for entry in lost},
        }
