"""Reading a model's hidden states and attention while it runs: what they are called, and the hooks that take them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from services.optimization.training.anatomy import Anatomy, anatomy_of, find_layers, inner_model

OUTPUT = "output"
RELATIONS = ("query", "key", "value")  # of the last layer


def hidden_name(layer: int) -> str:
    return f"hidden.{layer}"


def matched_layers(student: int, teacher: int) -> list[tuple[int, int]]:
    """(layer of the student, layer of the teacher), evenly spread and the last with the last."""
    return [(index, max(0, (index + 1) * teacher // student - 1)) for index in range(student)]


@contextmanager
def taken(module: nn.Module, wanted: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Every forward pass inside fills the mapping with what is wanted beside the output, [rows, tokens, width] each.

    `module` is one of services.backends.torch's. Raises UnsupportedOperator for a model whose parts are not known.
    """
    found: dict[str, Tensor] = {}
    handles = [place.register_forward_hook(_store(found, names)) for place, names in _places(module, wanted)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _places(module: nn.Module, wanted: Sequence[str]) -> list[tuple[nn.Module, Sequence[str]]]:
    internals = [name for name in wanted if name != OUTPUT]
    if not internals:
        return []
    layers = find_layers(inner_model(module))
    places: list[tuple[nn.Module, Sequence[str]]] = [
        (layer, [hidden_name(index)]) for index, layer in enumerate(layers) if hidden_name(index) in internals
    ]
    if RELATIONS[0] in internals:
        places += _attention_places(anatomy_of(inner_model(module)), layers[-1])
    return places


def _attention_places(anatomy: Anatomy, layer: nn.Module) -> list[tuple[nn.Module, Sequence[str]]]:
    if anatomy.fused:
        return [(layer.get_submodule(anatomy.query), RELATIONS)]
    return [(layer.get_submodule(path), [name]) for name, path in zip(RELATIONS, (anatomy.query, anatomy.key, anatomy.value), strict=True)]


def _store(found: dict[str, Tensor], names: Sequence[str]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_: nn.Module, __: Any, answer: Any) -> None:
        tensor: Tensor = answer[0] if isinstance(answer, tuple) else answer
        found.update(zip(names, tensor.chunk(len(names), dim=-1), strict=True))

    return hook
