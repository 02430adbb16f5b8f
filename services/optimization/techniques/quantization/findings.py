"""What was measured on a prepared graph and the calibration examples, in this job or in an earlier one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from services.optimization import folder
from services.optimization.remembered import Arrays, processor
from services.optimization.techniques.technique import Context


@dataclass(frozen=True)
class Findings:
    context: Context
    prepared: Path

    def recall(self, kind: str, shaped_by: Mapping[str, Any], compute: Callable[[], Arrays]) -> Arrays:
        """What `compute` answers, or answered before for this graph, these examples and the plain JSON of `shaped_by`."""
        return self.context.remembered.recall(kind, lambda: {**self._common, **shaped_by}, compute)

    @cached_property
    def _common(self) -> dict[str, Any]:
        context = self.context
        return {
            "source": folder.content_digest(context.source, context.signature),  # the tokenizer, too
            "graph": folder.file_sha256(self.prepared),
            "examples": context.calibration.digest,
            "seed": context.seed,
            "processor": [*processor(), context.threads],
        }

    def errors(self, layers: Sequence[str], shaped_by: Mapping[str, Any], measure: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """Relative output error of each of `layers`, worst first, as `measure` answers it."""

        def measured() -> Arrays:
            found = measure()
            return {"errors": np.array([found[name] for name in layers])}

        arrays = self.recall("sensitivity", {"layers": list(layers), **shaped_by}, measured)
        errors = dict(zip(layers, arrays["errors"].tolist(), strict=True))
        return dict(sorted(errors.items(), key=lambda item: -item[1]))

    def fidelity(self, shaped_by: Mapping[str, Any], measure: Callable[[], float]) -> float:
        """Of one trial, as `measure` answers it."""
        return float(self.recall("trial", shaped_by, lambda: {"fidelity": np.array([measure()])})["fidelity"][0])
