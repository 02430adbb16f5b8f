"""Where a run stands, on the disk: one safetensors file, replaced whole, with the rest as JSON in its header."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from services.repository import atomic

_FILE, _STATE, _RUN = "checkpoint.safetensors", "state", "run"


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` under flat names, `state` plain JSON."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


class Checkpoints:
    """The last checkpoint of the run named by a digest of all that shapes it; another run's is not found."""

    def __init__(self, folder: Path, run: str) -> None:
        self._path = folder / _FILE
        self._run = run

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces the one before; a process killed at any instant leaves one of the two. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        staged = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            # Copies: safetensors refuses tensors that share memory, as tied weights do.
            tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
            save_file(tensors, staged, {_STATE: json.dumps(checkpoint.state), _RUN: self._run})
            with staged.open("rb") as file:
                os.fsync(file.fileno())
            staged.replace(self._path)
        finally:
            staged.unlink(missing_ok=True)
        atomic.sync_folder(self._path.parent)

    def load(self) -> Checkpoint | None:
        """None when there is none, it is damaged, or it is another run's."""
        for left in self._path.parent.glob("*.part"):  # of killed processes: a step is one process's at a time
            left.unlink(missing_ok=True)
        with suppress(SafetensorError, OSError, ValueError, KeyError), safe_open(self._path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata[_RUN] == self._run:
                return Checkpoint({name: file.get_tensor(name).clone() for name in file.keys()}, json.loads(metadata[_STATE]))  # noqa: SIM118
        return None
