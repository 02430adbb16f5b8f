"""The work of `torch_dynamic_int8`, behind which torch.ao.quantization lies. Imports torch."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from services.optimization import folder
from services.optimization.environment import cpu_features, has_int8_dot
from services.optimization.failures import Toolchain, UnsupportedOperator
from services.optimization.techniques.technique import Context, Outcome
from services.optimization.techniques.torchscript import FILE_NAME
from services.optimization.techniques.torchscript_export import freeze, trace
from services.optimization.techniques.tracing import first_line, load_source, quiet, vocabulary
from services.optimization.techniques.verification import TOLERANCES, module_answer, trials, verify
from services.repository.manifest import Format

if TYPE_CHECKING:
    from services.optimization.techniques.torch_dynamic_int8 import TorchDynamicInt8Parameters

NAME = "torch_dynamic_int8"
# torch.ao's layers of this version and later pass reduce_range to the kernel, earlier ones do not: the only switch there is.
_REDUCED, _FULL = 4, 3


class _Contiguous(nn.Module):
    """A quantized table whose kernel takes no strided indices, such as a slice of the positions."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, indices: Tensor) -> Tensor:
        rows: Tensor = self.table(indices.contiguous())
        return rows


def _linear(layer: Any) -> nn.Linear:
    """GPT-2's Conv1D, a linear layer with its weight [inputs, outputs], as the layer that torch.ao knows."""
    inputs, outputs = layer.weight.shape
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.copy_(layer.weight.T)
        linear.bias.copy_(layer.bias)
    return linear


def _replace_conv1d(module: nn.Module) -> None:
    for name, layer in list(module.named_modules()):
        if isinstance(layer, Conv1D):
            module.set_submodule(name, _linear(layer))


def _named(module: nn.Module, kind: type[nn.Module], exclude: tuple[str, ...]) -> Iterator[str]:
    """Names of the layers of exactly this kind that no pattern excludes."""
    for name, layer in module.named_modules():
        if type(layer) is kind and not any(fnmatchcase(name, pattern) for pattern in exclude):
            yield name


def _quantize(module: nn.Module, products: list[str], tables: list[str], *, per_channel: bool, reduce_range: bool) -> None:
    """In place. Raises Toolchain."""
    try:
        from torch.ao import quantization as ao
        from torch.ao.nn.quantized import dynamic

        weights = ao.per_channel_dynamic_qconfig if per_channel else ao.default_dynamic_qconfig
        chosen = dict.fromkeys(products, weights) | dict.fromkeys(tables, ao.float_qparams_weight_only_qconfig)
        with quiet():
            ao.quantize_dynamic(module, chosen, inplace=True)  # type: ignore[no-untyped-call]  # torch.ao has no annotations
    except Exception as error:  # ImportError from a torch that has moved it, RuntimeError and AssertionError from within
        raise Toolchain(f"{NAME}: {type(error).__name__}: {first_line(error)}") from error
    for layer in module.modules():
        if isinstance(layer, dynamic.Linear):
            layer.version = _REDUCED if reduce_range else _FULL
    for name in tables:
        module.set_submodule(name, _Contiguous(module.get_submodule(name)))


def quantize(context: Context, parameters: "TorchDynamicInt8Parameters") -> Outcome:
    """Raises BadModel, UnsupportedOperator or Toolchain."""
    signature = context.signature.model_copy(update={"format": Format.TORCHSCRIPT, "dtype": "int8"})
    module = load_source(context, "float32")
    _replace_conv1d(module)
    every = list(_named(module, nn.Linear, ()))
    products = list(_named(module, nn.Linear, parameters.exclude))
    tables = list(_named(module, nn.Embedding, parameters.exclude)) if parameters.quantize_embeddings else []
    if not products:
        raise UnsupportedOperator(f"{NAME}: of {len(every)} linear layers none is left to quantize; convolutions take no dynamic INT8")
    reduce_range = parameters.reduce_range if parameters.reduce_range is not None else not has_int8_dot(cpu_features())
    context.progress(0.2, f"quantizing {len(products)} layers")
    _quantize(module, products, tables, per_channel=parameters.per_channel, reduce_range=reduce_range)
    context.progress(0.4, "tracing")
    freeze(NAME, trace(NAME, module, signature), context.target / FILE_NAME, optimize=False)
    folder.copy_files(context.source, context.target, (*folder.TOKENIZER_FILES, *folder.DESCRIPTION_FILES))
    context.progress(0.7, "verifying on other shapes")
    tried = list(trials(signature, vocabulary(module)))
    tolerance = TOLERANCES["int8"]
    off = verify(NAME, module_answer(module), context.target, signature, tried, threads=context.threads, tolerance=tolerance)
    notes: dict[str, Any] = {
        "quantized_products": len(products),
        "quantized_tables": len(tables),
        "excluded": [name for name in every if name not in set(products)],
        "per_channel": parameters.per_channel,
        "reduce_range": reduce_range,
        "engine": torch.backends.quantized.engine,
        "largest_deviation_from_the_untraced": off,
        "verified_shapes": len(tried),
    }
    return Outcome(signature, notes)
