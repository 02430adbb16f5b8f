"""What of a transformer its config tells, as far as it decides which students the model can have."""

import json
from contextlib import suppress
from pathlib import Path

from services.optimization.advisor.ladder import Anatomy

# By the names that configs of transformers give them.
_LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
_INTERMEDIATE = ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim")
_HIDDEN = ("hidden_size", "dim", "d_model", "n_embd")


def anatomy_of(folder: Path) -> Anatomy:
    """Of a model folder; zeros where there is no config, or it tells no such thing: beside an ONNX file it may be anything."""
    config: object = None
    with suppress(FileNotFoundError, ValueError):
        config = json.loads((folder / "config.json").read_text())
    if not isinstance(config, dict):
        return Anatomy()
    return Anatomy(_first(config, _LAYERS), _first(config, _INTERMEDIATE), _first(config, _HIDDEN))


def _first(config: dict[str, object], names: tuple[str, ...]) -> int:
    found = (config.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), 0)
