"""Hugging Face text models on torch, pooled and normalized inside."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from services.backends import Array, LoadError, RunError
from services.repository.manifest import Pooling, Signature, Task

# Part of many encoders and absent from many checkpoints; an embedding pools by itself and never reads it.
_POOLER = ("pooler.",)


class TextModel(nn.Module):
    """(input_ids, attention_mask) INT64 [rows, tokens] -> `embedding` FP32 [rows, dimensions] or `logits` FP32 [rows, labels]."""

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
        answer = self.model(**inputs)
        if self.task is Task.CLASSIFICATION:
            logits: Tensor = answer.logits
            return logits.float()
        return self._pool(answer.last_hidden_state, attention_mask)

    def _pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Sums in FP32 whatever the weights are: 256 addends in bfloat16 lose what the encoder kept."""
        hidden = hidden.float()
        if self.pooling is Pooling.CLS:
            vector = hidden[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            vector = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(vector, dim=1) if self.normalize else vector


@contextlib.contextmanager
def _silent_load() -> Iterator[None]:
    """Keeps the loader's progress bars and reports off the service's streams; what they tell is checked by `_check_keys`."""
    root = logging.getLogger("transformers")
    level, bars = root.level, transformers.utils.logging.is_progress_bar_enabled()
    root.setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        root.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def _check_keys(info: Mapping[str, Any], model: nn.Module, optional: tuple[str, ...]) -> None:
    """Refuses weights that are absent, of another shape, or belong to a part of the model that its config does not have."""
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(optional))
    if missing:
        raise LoadError(f"model.safetensors: the weight {missing[0]!r}, which config.json asks for, is missing")
    if info["mismatched_keys"]:
        name, found, wanted = min(info["mismatched_keys"])
        raise LoadError(f"model.safetensors: {name!r} has the shape {list(found)}; config.json asks for {list(wanted)}")
    parts = {name.partition(".")[0] for name, _ in model.named_parameters()}
    buffers = ("position_ids", "token_type_ids")
    strangers = [key for key in info["unexpected_keys"] if key.partition(".")[0] in parts and not key.endswith(buffers)]
    if strangers:
        raise LoadError(f"model.safetensors: config.json has no place for the weight {min(strangers)!r}")


def _pretrained(folder: Path, signature: Signature, attention: str) -> nn.Module:
    automatic = transformers.AutoModel if signature.task is Task.EMBEDDING else transformers.AutoModelForSequenceClassification
    model, info = automatic.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=getattr(torch, signature.dtype),
        attn_implementation=attention,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that `_check_keys` can name the weight
    )
    _check_keys(info, model, optional=_POOLER if signature.task is Task.EMBEDDING else ())
    loaded: nn.Module = model
    return loaded


def load_module(folder: Path, signature: Signature, attention: str = "sdpa") -> TextModel:
    """The model of a Hugging Face folder in evaluation mode. `attention` is transformers' implementation name. Raises LoadError."""
    if signature.task is Task.TENSOR:
        raise LoadError("a Hugging Face folder answers texts, not named tensors")
    try:
        with _silent_load():
            model = _pretrained(folder, signature, attention)
    except LoadError:
        raise
    except Exception as error:  # transformers, safetensors and torch have no common class
        raise LoadError(f"config.json or model.safetensors: {error}") from error
    return TextModel(model, signature).eval()


class TorchBackend:
    """A module and its weights, shared by every thread that calls `run`."""

    name = "torch"

    def __init__(self, folder: Path, signature: Signature, threads: int) -> None:
        """Raises LoadError."""
        self._module: TextModel | None = load_module(folder, signature)
        self._output = signature.outputs[0].name
        self._names = tuple(spec.name for spec in signature.inputs)
        self._threads = threads

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        module = self._module
        if module is None:
            raise RunError("the model is closed")
        if set(outputs) - {self._output}:
            raise RunError(f"the model answers {self._output!r} alone, not {sorted(set(outputs) - {self._output})}")
        return {self._output: self._forward(module, inputs)} if outputs else {}

    def _forward(self, module: TextModel, inputs: Mapping[str, Array]) -> Array:
        # torch keeps the number per calling thread, and another model of this process may want another one.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                tensors = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._names}
                answer: Array = module(**tensors).numpy()
        except Exception as error:  # torch raises RuntimeError, IndexError, TypeError, …
            raise RunError(str(error) if not isinstance(error, KeyError) else f"the input {error} is missing") from error
        return answer

    def close(self) -> None:
        self._module = None
