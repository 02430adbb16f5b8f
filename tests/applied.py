"""One technique on one folder, without a job around it."""

from pathlib import Path
from typing import Any

from services.optimization.examples import Examples
from services.optimization.techniques import Context, Model, Outcome, Technique, find
from services.repository.manifest import Signature


def apply(
    technique: str | Technique,
    source: Path,
    signature: Signature,
    root: Path,
    *,
    calibration: Examples | None = None,
    training: Examples | None = None,
    **parameters: Any,
) -> tuple[Path, Outcome]:
    """The folder that the technique made below `root`, which must be new, and its outcome."""
    found = find(technique) if isinstance(technique, str) else technique
    target, scratch, checkpoints, outputs = (root / part for part in ("target", "scratch", "checkpoints", "outputs"))
    for folder in (target, scratch, checkpoints, outputs):
        folder.mkdir(parents=True)
    context = Context(
        source=source,
        signature=signature,
        target=target,
        scratch=scratch,
        checkpoints=checkpoints,
        outputs=outputs,
        parameters=found.parameters.model_validate(parameters),
        calibration=calibration or Examples(),
        training=training or Examples(),
        original=Model(source, signature),
        seed=0,
        threads=1,
        progress=lambda share, message, **figures: None,
    )
    return target, found.apply(context)
