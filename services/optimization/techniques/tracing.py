"""What every conversion that follows a model's operations starts from. Imports torch: import it when a technique is applied."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from services import backends
from services.backends.torch import load_module
from services.optimization.failures import BadModel
from services.optimization.techniques.technique import Context
from services.optimization.techniques.verification import Arrays, traced
from services.repository.manifest import Signature

_CHATTY = ("torch.onnx", "torch.export", "torch._inductor", "torch.fx", "onnxscript", "transformers")


class Positional(nn.Module):
    """The same model with its inputs by position, in the signature's order, as every compiled format calls it."""

    def __init__(self, module: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(spec.name for spec in signature.inputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        answer: Tensor = self.module(**dict(zip(self.names, inputs, strict=True)))
        return answer


def load_source(context: Context, dtype: str = "", attention: str = "sdpa") -> Any:
    """The step's source as `services.backends.torch` loads it, in `dtype` or in its own. Raises BadModel."""
    signature = context.signature.model_copy(update={"dtype": dtype}) if dtype else context.signature
    try:
        return load_module(context.source, signature, attention)
    except backends.LoadError as error:
        raise BadModel(str(error)) from error


def vocabulary(module: Any) -> int:
    """Rows of the token table; 0 for a model that takes no texts."""
    return int(getattr(module.model.config, "vocab_size", 0))


def traced_tensors(module: Any, signature: Signature) -> tuple[Tensor, ...]:
    """The example to convert with, in the signature's order."""
    arrays: Arrays = traced(signature, vocabulary(module))
    return tuple(torch.from_numpy(arrays[spec.name]) for spec in signature.inputs)


def first_line(error: BaseException) -> str:
    """What a compiler says first, without addresses in memory; the pages after it are its own stack."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return re.sub(r" at 0x[0-9a-f]+", "", line)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Tracers and compilers announce their retirement and every data-dependent branch; the verification is what counts."""
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
