"""Hugging Face models on torch: texts, pooled and normalized inside, and images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor, nn

from services.backends import DEFAULT, LoadError, Options, devices, shapes
from services.backends.pretrained import load_pretrained
from services.backends.samples import sample
from services.backends.torch_runs import TorchRuns
from services.repository.manifest import Pooling, Signature, Task

log = structlog.get_logger("hone.backends")


class TextModel(nn.Module):
    """(input_ids, attention_mask) INT64 [rows, tokens] -> FP32: what the signature's task answers, `Signature` says in which shape."""

    def __init__(self, model: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.model = model
        self.task = signature.task
        self.pooling = signature.pooling or Pooling.MEAN
        self.normalize = signature.normalize

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if self.task is Task.CAUSAL_LM:
            inputs["use_cache"] = False  # whole rows are scored: what a cache would keep is never read
        answer = self.model(**inputs)
        if self.task is Task.EMBEDDING:
            return self._pool(answer.last_hidden_state, attention_mask)
        logits: Tensor = answer.logits
        return logits.float()

    def _pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Sums in FP32 whatever the weights are: 256 addends in bfloat16 lose what the encoder kept."""
        hidden = hidden.float()
        if self.pooling is Pooling.CLS:
            vector = hidden[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            vector = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(vector, dim=1) if self.normalize else vector


class ImageModel(nn.Module):
    """`pixel_values` FP32 [rows, channels, height, width] -> `logits` FP32 [rows, labels], whatever dtype the weights have."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        dtype = next((weight.dtype for weight in self.model.parameters()), torch.float32)
        logits: Tensor = self.model(pixel_values=pixel_values.to(dtype)).logits
        return logits.float()


def _model(folder: Path, signature: Signature, attention: str) -> nn.Module:
    if shapes.has_shapes(folder):
        return shapes.build(folder, signature, attention)
    return load_pretrained(folder, signature, attention)


def load_module(folder: Path, signature: Signature, attention: str = "sdpa") -> TextModel | ImageModel:
    """The model of a Hugging Face folder in evaluation mode, `.model` being transformers' own; pruned ones as their shapes.json says.

    It takes the signature's inputs as keyword tensors and answers its one output. `attention` is transformers' implementation name.
    Raises LoadError.
    """
    try:
        model = _model(folder, signature, attention)
    except LoadError:
        raise
    except Exception as error:  # transformers, safetensors and torch have no common class
        raise LoadError(f"config.json or model.safetensors: {error}") from error
    return (TextModel(model, signature) if signature.task.takes_text else ImageModel(model)).eval()


def compile_or_not(module: nn.Module, signature: Signature, device: str) -> Callable[..., Tensor]:
    """torch.compile's version for batches of any size; the module itself, with a warning, where compiling it fails.

    Compiled here, not at the first call: one row and several are two graphs, and a caller would wait for each.
    """
    compiled = torch.compile(module, dynamic=True)
    try:
        with torch.inference_mode():
            for rows, tokens in ((1, 8), (2, 16), (3, 24)):
                compiled(**{name: torch.from_numpy(array).to(device) for name, array in sample(signature, rows, tokens).items()})
    except Exception as error:  # the compiler, the C++ compiler below it and the model itself share no class
        log.warning("torch.compile failed; the model runs eagerly", error=f"{type(error).__name__}: {error}"[:500])
        return module
    return compiled


class TorchBackend(TorchRuns):
    """A Hugging Face folder, eager or compiled while it is loaded."""

    def __init__(self, folder: Path, signature: Signature, threads: int, options: Options = DEFAULT) -> None:
        """Raises LoadError."""
        device = devices.choose(options.device, cuda=torch.cuda.is_available())
        module = load_module(folder, signature).to(device)
        call = compile_or_not(module, signature, device) if options.compiled else module
        super().__init__(lambda tensors: call(**tensors), signature, threads, device=device)
        self.name = " ".join(["torch", *(["compiled"] if call is not module else []), *([device] if device != devices.CPU else [])])


def load(folder: Path, signature: Signature, threads: int, parallel_runs: int, options: Options) -> TorchBackend:
    """Runs in parallel as it is. Raises LoadError."""
    return TorchBackend(folder, signature, threads, options)
