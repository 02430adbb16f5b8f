"""A source turned into the student that training starts from."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from services.optimization.failures import UnsupportedOperator
from services.optimization.techniques import student_widths
from services.optimization.training import randomness
from services.optimization.training.anatomy import find_layers
from services.repository.manifest import Signature, Task

if TYPE_CHECKING:
    from services.optimization.techniques.distill import DistillParameters


def make(module: Any, signature: Signature, parameters: "DistillParameters", seed: int, *, is_pruned: bool) -> dict[str, Any]:
    """Makes a module of services.backends.torch the student that `parameters` ask for, in place; answers what was chosen.

    `is_pruned` tells that the source has shapes which its config cannot express. Raises UnsupportedOperator for shapes that
    the model cannot have, naming the parameter at fault.
    """
    before = parameter_count(module)
    notes: dict[str, Any] = {"init": parameters.init}
    if parameters.layers is not None:
        kept = keep_layers(module.model, parameters.layers, parameters.layer_choice)
        notes |= {"layers": len(kept)} | ({"layers_kept": kept} if parameters.init == "teacher" else {})
    sizes = (parameters.hidden_size, parameters.heads, parameters.intermediate_size)
    if is_pruned and (any(sizes) or parameters.init == "random"):
        raise UnsupportedOperator("the source is pruned to shapes of its own: only its layers can be chosen, and they start as they are")
    if any(sizes):
        _check_embedding(signature, module.model, parameters.hidden_size)
        notes |= student_widths.narrow(module, *sizes)
    if parameters.init == "random":
        module.model = _renewed(module.model, seed)
    return notes | {"parameters_before": before, "parameters_after": parameter_count(module)}


def parameter_count(module: nn.Module) -> int:
    """Weights that are tied count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def choose_layers(count: int, of: int, choice: str) -> list[int]:
    """`spread` keeps the first and the last one (of one layer the first)."""
    if choice == "first":
        return list(range(count))
    if choice == "last":
        return list(range(of - count, of))
    return [index * (of - 1) // max(1, count - 1) for index in range(count)]


def keep_layers(model: Any, count: int, choice: str) -> list[int]:
    """Removes the other layers; answers which ones stayed. Raises UnsupportedOperator."""
    layers = find_layers(model)
    if count > len(layers):
        raise UnsupportedOperator(f"layers: the source has {len(layers)}; a student cannot have {count}")
    kept = choose_layers(count, len(layers), choice)
    _renumber(model, kept, len(layers))
    for index in sorted(set(range(len(layers))) - set(kept), reverse=True):
        del layers[index]
    for index, layer in enumerate(layers):
        _set_layer_index(layer, index)
    return kept


def _set_layer_index(layer: nn.Module, index: int) -> None:
    part: Any
    for part in layer.modules():
        if isinstance(getattr(part, "layer_idx", None), int):
            part.layer_idx = index


def _renumber(model: Any, kept: Sequence[int], before: int) -> None:
    """The config counts layers, and may describe each of them in a list."""
    config = model.config
    for name, value in config.to_dict().items():
        if name == "layer_types" and isinstance(value, list) and len(value) == before:
            setattr(config, name, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)


def _check_embedding(signature: Signature, model: Any, hidden_size: int | None) -> None:
    """A stock config has no place for a projection back to the promised width."""
    if signature.task is Task.EMBEDDING and hidden_size not in (None, model.config.hidden_size):
        raise UnsupportedOperator(
            f"hidden_size: an embedding is as wide as its model; with {hidden_size} it could not stand in for"
            f" {model.config.hidden_size} dimensions (fewer layers, heads or feed-forward neurons can)"
        )


def _renewed(model: Any, seed: int) -> nn.Module:
    """As its config builds it, with weights drawn from `seed`."""
    with randomness.seeded(seed):
        fresh: nn.Module = type(model)(copy.deepcopy(model.config))
    return fresh.eval()
