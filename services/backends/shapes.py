"""Models whose shapes no config.json can express: `shapes.json` beside it tells where they differ from what it describes.

Pruning leaves attention with fewer heads than its width asks for, and layers of one model with different widths. The file
holds numbers by module and attribute, the weights hold their own shapes, and nothing is ever unpickled.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from services.backends import LoadError
from services.backends.pretrained import attention_named, automatic_class, optional_weights, silent_load
from services.repository.manifest import Signature

FILE = "shapes.json"
VERSION = 1
MAX_BYTES = 8 << 20
LARGEST = 1 << 24  # of any number: wider than every model, and far from overflowing a product of two

# What surgery changes: counts and widths, each read by some module's forward. Anything else in the file is refused.
INTEGERS = frozenset(
    {
        *("num_attention_heads", "num_heads", "n_heads", "num_key_value_groups"),
        *("attention_head_size", "all_head_size", "head_dim", "split_size"),
        *("embed_dim", "dim", "hidden_size", "hidden_dim", "intermediate_size", "embedding_dim"),
        *("in_features", "out_features", "nx", "nf", "in_channels", "out_channels", "groups", "num_features", "normalized_shape"),
    }
)
# 1 / sqrt(head width), which pruning keeps while the width that config.json implies changes.
REALS = frozenset({"scaling"})

_PATH = re.compile(r"[A-Za-z]\w{0,63}(\.\w{1,64}){0,31}")
Attributes = Mapping[str, Mapping[str, Any]]


def has_shapes(folder: Path) -> bool:
    return (folder / FILE).is_file()


# -- the file ---------------------------------------------------------------------------------------------------------------


def check(folder: Path) -> None:
    """Raises LoadError unless `shapes.json` holds what `build` understands, within bounds; opens nothing else."""
    _read(folder)


def _read(folder: Path) -> Attributes:
    content = _parse(folder / FILE)
    if not isinstance(content, dict) or set(content) != {"version", "attributes"} or content["version"] != VERSION:
        raise LoadError(f'{FILE}: {{"version": {VERSION}, "attributes": {{…}}}} is expected')
    attributes = content["attributes"]
    if not isinstance(attributes, dict):
        raise LoadError(f"{FILE}: attributes is not an object of modules")
    for path, values in attributes.items():
        _check_module(path, values)
    return attributes


def _parse(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise LoadError(f"{FILE}: larger than {MAX_BYTES} bytes")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once, parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{FILE}: not JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _check_module(path: str, values: Any) -> None:
    if not _PATH.fullmatch(path):
        raise LoadError(f"{FILE}: {path[:80]!r} is no path of a module")
    if not isinstance(values, dict):
        raise LoadError(f"{FILE}: {path}: not an object of attributes")
    for name, value in values.items():
        if not _is_allowed(name, value):
            raise LoadError(f"{FILE}: {path}: {name[:80]!r} = {str(value)[:80]} is no attribute that pruning changes")


def _is_allowed(name: str, value: Any) -> bool:
    if name in REALS:
        return isinstance(value, float) and 0 < value <= LARGEST
    numbers = value if isinstance(value, list) else [value]
    whole = all(type(number) is int and 1 <= number <= LARGEST for number in numbers)
    return name in INTEGERS and whole and 1 <= len(numbers) <= 8


# -- from a module to the file ------------------------------------------------------------------------------------------------


def describe(model: nn.Module) -> dict[str, Any]:
    """The content of `shapes.json` for a transformers model; {} where its own config builds the same shapes.

    Raises ValueError for modules or attributes that the file cannot express.
    """
    fresh = _bare(model)
    attributes = {path: found for path, module in model.named_modules() if (found := _changed(path, module, fresh))}
    if not attributes and _sizes(model) == _sizes(fresh):
        return {}
    return {"version": VERSION, "attributes": attributes}


def _bare(model: Any) -> nn.Module:
    """As its config builds it, without memory for weights."""
    with silent_load(), torch.device("meta"), no_init_weights():
        built: nn.Module = type(model)._from_config(type(model.config).from_dict(model.config.to_dict()))
    return built


def _sizes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def _changed(path: str, module: nn.Module, fresh: nn.Module) -> dict[str, Any]:
    try:
        other = fresh.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"config.json builds no module {path}") from error
    if type(other) is not type(module):
        raise ValueError(f"config.json builds a {type(other).__name__} at {path}, not a {type(module).__name__}")
    names = sorted((INTEGERS | REALS) & vars(module).keys())
    values = {name: vars(module)[name] for name in names if vars(module)[name] != vars(other).get(name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


# -- from the folder to a module ----------------------------------------------------------------------------------------------


def build(folder: Path, signature: Signature, attention: str) -> nn.Module:
    """The transformers model of a folder with `shapes.json`, in evaluation mode, its weights bit for bit those of the file.

    `attention` is transformers' implementation name. Raises LoadError naming the weight that is missing, superfluous, not
    finite or of a shape that its module cannot have, and when modules do not fit each other.
    """
    attributes = _read(folder)
    try:
        with silent_load():
            model = _unfilled(folder, signature, attention)
            weights = load_file(folder / "model.safetensors")
    except Exception as error:  # transformers, safetensors and torch have no common class
        raise LoadError(f"config.json or model.safetensors: {error}") from error
    for path, values in attributes.items():
        _set(model, path, values)
    _fill(model, weights, signature)
    _check_shapes(model)
    _check_fit(model.eval(), signature)
    return model


def _unfilled(folder: Path, signature: Signature, attention: str) -> nn.Module:
    """As config.json describes it. On the CPU and not on the meta device: buffers that no file holds are computed here."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    options = {"dtype": getattr(torch, signature.dtype), "trust_remote_code": False, "attn_implementation": attention_named(attention)}
    with no_init_weights():
        model = automatic_class(signature.task).from_config(config, **{name: value for name, value in options.items() if value is not None})
    model.tie_weights()  # a part of the initialization that was left out
    built: nn.Module = model
    return built


def _set(model: nn.Module, path: str, values: Mapping[str, Any]) -> None:
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise LoadError(f"{FILE}: config.json builds no module {path}") from error
    for name, value in values.items():
        present = vars(module).get(name)
        whole = isinstance(present, tuple | list)
        if present is None or whole != isinstance(value, list) or (whole and len(present) != len(value)):
            raise LoadError(f"{FILE}: {path}: a {type(module).__name__} has no {name} like {value}")
        setattr(module, name, tuple(value) if isinstance(present, tuple) else value)


def tied(model: nn.Module) -> list[list[str]]:
    """Names of the weights and stored buffers, those of one tensor together, in the model's order."""
    groups: dict[int, list[str]] = {}
    kept = model.state_dict(keep_vars=True)
    for name, value in kept.items():
        groups.setdefault(id(value), []).append(name)
    return list(groups.values())


def _fill(model: nn.Module, weights: Mapping[str, Tensor], signature: Signature) -> None:
    """Puts the file's tensors in place of the model's: strictly, but for one name of a tied weight and what is never read."""
    optional = optional_weights(signature.task)
    left = set(weights)
    for names in tied(model):
        found = [name for name in names if name in left]
        if not found and not names[0].startswith(optional):
            raise LoadError(f"model.safetensors: the weight {names[0]!r}, which config.json asks for, is missing")
        if len(found) > 1:
            raise LoadError(f"model.safetensors: {found[0]!r} and {found[1]!r} are one weight")
        if found:
            _put(model, names, weights[found[0]])
        else:
            model.get_parameter(names[0]).data.zero_()  # unread, and yet a saved copy should not hold stale memory
        left -= set(names)
    if left:
        raise LoadError(f"model.safetensors: config.json has no place for the weight {min(left)!r}")


def _put(model: nn.Module, names: list[str], value: Tensor) -> None:
    present = model.state_dict(keep_vars=True)[names[0]]
    if present.dtype != value.dtype or present.dim() != value.dim():
        raise LoadError(f"model.safetensors: {names[0]!r} is {_spell(value)}; config.json asks for one like {_spell(present)}")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise LoadError(f"model.safetensors: {names[0]!r} holds values that are not finite")
    placed = nn.Parameter(value, requires_grad=present.requires_grad) if isinstance(present, nn.Parameter) else value
    for name in names:
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, placed)


def _spell(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _asked(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes that a module's attributes ask of its weights; {} for modules that ask nothing."""
    if isinstance(module, nn.Linear):
        return {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        weight = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        return {"weight": weight, "bias": (module.out_channels,)}
    if isinstance(module, nn.LayerNorm):
        return {"weight": tuple(module.normalized_shape), "bias": tuple(module.normalized_shape)}
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (module.num_features,))
    if isinstance(module, nn.Embedding):
        return {"weight": (module.num_embeddings, module.embedding_dim)}
    if isinstance(module, transformers.pytorch_utils.Conv1D):
        return {"weight": (module.nx, module.nf), "bias": (module.nf,)}
    return {}


def _check_shapes(model: nn.Module) -> None:
    for path, module in model.named_modules():
        for name, shape in _asked(module).items():
            value = getattr(module, name)
            if value is not None and tuple(value.shape) != shape:
                raise LoadError(f"model.safetensors: {path}.{name} has the shape {list(value.shape)}; its module asks for {list(shape)}")


def probe(model: Any, signature: Signature) -> dict[str, Tensor]:
    """The smallest input that runs through every layer: two tokens, or one black image of the config's size (32 where it has none)."""
    if signature.task.takes_text:
        ids = torch.full((1, 2), signature.pad_token_id if signature.pad_token_id < model.config.vocab_size else 0)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    size = getattr(model.config, "image_size", None) or 32
    height, width = size if isinstance(size, list | tuple) else (size, size)
    dtype = getattr(torch, signature.dtype)
    return {"pixel_values": torch.zeros(1, model.config.num_channels, height, width, dtype=dtype)}


def _check_fit(model: nn.Module, signature: Signature) -> None:
    """Shapes may each be possible and not fit each other: that is known before anybody's request runs into it."""
    inputs = probe(model, signature)
    if math.prod(next(iter(inputs.values())).shape) > LARGEST:
        raise LoadError("config.json: image_size is too large")
    try:
        with torch.inference_mode():
            model(**inputs)
    except Exception as error:  # torch raises RuntimeError, IndexError, TypeError, …
        raise LoadError(f"{FILE}: modules do not fit each other: {error}") from error
