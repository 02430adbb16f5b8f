"""Where a run stands, and which examples it trains on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np


@dataclass
class Standing:
    """How far a run is: plain JSON, a part of its checkpoints."""

    step: int = 0
    epoch: int = 0
    done: int = 0  # steps of this epoch
    best_step: int = -1
    best_loss: float = math.inf
    stale: int = 0  # evaluations since the best one
    stopped: str = ""
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """JSON, which knows no infinity."""
        return asdict(self) | {"best_loss": self.best_loss if math.isfinite(self.best_loss) else None}

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Self:
        """From `plain`."""
        return cls(**{**content, "best_loss": math.inf if content["best_loss"] is None else content["best_loss"]})


@dataclass(frozen=True)
class Split:
    """Positions of the examples to train on and of those held out."""

    trained: Sequence[int]
    held: Sequence[int]

    @classmethod
    def of(cls, examples: int, share: float, seed: int) -> "Split":
        """Two are always left to train on; with fewer than three examples none is held out."""
        order = [int(index) for index in np.random.default_rng(seed).permutation(examples)]
        held = max(0, min(max(1, round(examples * share)), examples - 2)) if share else 0
        return cls(order[held:], order[:held])
