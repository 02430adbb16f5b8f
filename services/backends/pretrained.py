"""A Hugging Face folder to the transformers model that its config and weights describe; nothing in it is executed."""

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from services.backends import LoadError
from services.repository.manifest import Signature, Task

_AUTOMATIC: Mapping[Task, Any] = {
    Task.EMBEDDING: transformers.AutoModel,
    Task.CLASSIFICATION: transformers.AutoModelForSequenceClassification,
    Task.TOKEN_CLASSIFICATION: transformers.AutoModelForTokenClassification,
    Task.IMAGE_CLASSIFICATION: transformers.AutoModelForImageClassification,
    Task.CAUSAL_LM: transformers.AutoModelForCausalLM,
}
_LOADING = threading.RLock()  # a load may contain another, of the model that it is compared with
# Part of many encoders and absent from many checkpoints; an embedding pools by itself and never reads it.
_POOLER = ("pooler.",)


def automatic_class(task: Task) -> Any:
    """transformers' class that chooses a model by its config. Raises LoadError."""
    if task not in _AUTOMATIC:
        raise LoadError("a Hugging Face folder answers texts or images, not named tensors")
    return _AUTOMATIC[task]


def optional_weights(task: Task) -> tuple[str, ...]:
    """Prefixes of the weights that a checkpoint may lack, since the task never reads them."""
    return _POOLER if task is Task.EMBEDDING else ()


def attention_named(attention: str) -> str | None:
    """transformers' argument: "sdpa" asked for by name is refused for nets without attention; asked for by None it is not."""
    return None if attention == "sdpa" else attention


@contextlib.contextmanager
def silent_load() -> Iterator[None]:
    """One load at a time, its progress bars and reports kept off the service's streams; what they tell is checked afterwards.

    The library replaces methods of its classes while it loads. Two threads that do so at once restore each other's replacements:
    tied weights then stay untied for the rest of the process.
    """
    root = logging.getLogger("transformers")
    with _LOADING:
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


def load_pretrained(folder: Path, signature: Signature, attention: str) -> nn.Module:
    """The folder's model in the signature's dtype, every weight accounted for.

    Raises:
        LoadError: a weight is missing, superfluous or of another shape.
        Exception: transformers, safetensors and torch have no common class for broken files.
    """
    with silent_load():
        model, info = automatic_class(signature.task).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=getattr(torch, signature.dtype),
            attn_implementation=attention_named(attention),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that `_check_keys` can name the weight
        )
    _check_keys(info, model, optional_weights(signature.task))
    loaded: nn.Module = model
    return loaded
