"""A module that computes as its quantized export will, and back."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from services.optimization.techniques.quantization.fake import (
    DynamicActivation,
    FakeTable,
    FakeWeight,
    StaticActivation,
    activation_scale,
    bias_rounding,
    weight_scale,
)
from services.optimization.techniques.quantization.matching import Place

INPUT, OUTPUT = "input_quantizer", "output_quantizer"
Range = tuple[float, float]


@dataclass(frozen=True)
class Ranges:
    """(low, high) by the module's name: of inputs, and of outputs where they are quantized. Both empty in a dynamic scheme."""

    inputs: Mapping[str, Range]
    outputs: Mapping[str, Range]


@dataclass(frozen=True)
class Scheme:
    """`levels` is a weight's largest."""

    static: bool
    levels: int
    per_channel: bool

    def activation(self) -> nn.Module:
        return StaticActivation() if self.static else DynamicActivation()


def _quantize_input(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (module.input_quantizer(inputs[0]), *inputs[1:])


def _round_bias(module: Any, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Added to the product: the module's own bias is in it by now."""
    weights = module.parametrizations.weight
    activation, _zero = activation_scale(module.input_quantizer.low, module.input_quantizer.high)
    rounding = bias_rounding(module.bias, activation, weight_scale(weights.original, weights[0].levels, weights[0].channel_axis))
    return output + (rounding[:, None, None] if isinstance(module, nn.Conv2d) else rounding)


def _quantize_output(module: Any, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
    quantized: Tensor = module.output_quantizer(output)
    return quantized


class Simulation:
    """Fake quantization within `module`, in place, until `remove`."""

    def __init__(self, module: nn.Module, places: Iterable[Place], tables: Iterable[str], scheme: Scheme) -> None:
        self._module = module
        self._places = list(places)
        self._tables = sorted(set(tables))
        self._scheme = scheme
        self._hooks: list[RemovableHandle] = []
        for place in self._places:
            self._install(place, module.get_submodule(place.module))
        for name in self._tables:
            parametrize.register_parametrization(module.get_submodule(name), "weight", FakeTable())

    def _install(self, place: Place, child: nn.Module) -> None:
        # A Linear and a Conv2d hold [outputs, ...], transformers' Conv1D [inputs, outputs].
        axis = 1 if isinstance(child, Conv1D) else 0
        weight = FakeWeight(self._scheme.levels, axis if self._scheme.per_channel else None)
        parametrize.register_parametrization(child, "weight", weight)
        child.add_module(INPUT, self._scheme.activation())
        self._hooks.append(child.register_forward_pre_hook(_quantize_input))
        if place.rounds_bias and self._scheme.static:
            self._hooks.append(child.register_forward_hook(_round_bias))
        if place.ends and self._scheme.static:
            child.add_module(OUTPUT, self._scheme.activation())
            self._hooks.append(child.register_forward_hook(_quantize_output))

    def _observers(self, name: str) -> dict[str, StaticActivation]:
        found = {place.module: getattr(self._module.get_submodule(place.module), name, None) for place in self._places}
        return {module: observer for module, observer in found.items() if isinstance(observer, StaticActivation)}

    def ranges(self) -> Ranges:
        """What the observers of a static scheme hold by now."""
        inputs, outputs = ({module: found.range() for module, found in self._observers(name).items()} for name in (INPUT, OUTPUT))
        return Ranges(inputs, outputs)

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        """Ranges follow what flows, while dropout and the rest stay in evaluation mode."""
        observers = [*self._observers(INPUT).values(), *self._observers(OUTPUT).values()]
        for observer in observers:
            observer.train()
        yield
        for observer in observers:
            observer.eval()

    def remove(self) -> None:
        """Leaves the module as it was, with the weights that were trained."""
        for hook in self._hooks:
            hook.remove()
        for place in self._places:
            child = self._module.get_submodule(place.module)
            parametrize.remove_parametrizations(child, "weight", leave_parametrized=False)
            for name in (INPUT, OUTPUT):
                if hasattr(child, name):
                    delattr(child, name)
        for name in self._tables:
            parametrize.remove_parametrizations(self._module.get_submodule(name), "weight", leave_parametrized=False)
