"""How far a model's tables reach, for engines of native code that do not look before they read."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from services.backends import Array, RunError
from services.repository.manifest import Signature

_POSITIONS = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True)
class Limits:
    """0: unknown, not looked at."""

    vocabulary: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, folder: Path, signature: Signature) -> "Limits":
        """By config.json, which every technique carries along, and the signature."""
        config: Mapping[str, object] = {}
        with suppress(OSError, ValueError):
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        positions = next((value for name in _POSITIONS if isinstance(value := config.get(name), int)), 0)
        vocabulary = config.get("vocab_size")
        return cls(vocabulary if isinstance(vocabulary, int) else 0, signature.max_tokens or positions)

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Compiled code ends the whole process at an id past its table. Raises RunError."""
        ids = inputs.get("input_ids")
        if ids is None or not ids.size:
            return
        if self.tokens and ids.shape[-1] > self.tokens:
            raise RunError(f"'input_ids' has {ids.shape[-1]} tokens; the model takes {self.tokens}")
        if self.vocabulary and not (ids.min() >= 0 and ids.max() < self.vocabulary):
            raise RunError(f"'input_ids' holds ids from {ids.min()} to {ids.max()}; the vocabulary has {self.vocabulary}")


NO_LIMITS = Limits()
