"""Writing a changed module back as a Hugging Face folder that loads as what it was."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.optimization import folder
from services.optimization.failures import Toolchain
from services.repository.manifest import Signature, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

_POOLING = "1_Pooling/config.json"
_POOLING_WIDTHS = ("word_embedding_dimension", "embedding_dimension")  # the name until sentence-transformers 5, and since
# Beside what every technique carries along; config.json is written anew.
_CARRIED = ("added_tokens.json", "vocab.json", "generation_config.json", "preprocessor_config.json")


def save(module: "nn.Module", source: Path, target: Path, signature: Signature) -> None:
    """Writes config.json, model.safetensors, `shapes.json` where config.json cannot tell the shapes, and what `source` has beside them.

    `module` is what `services.backends.torch.load_module` answers, changed; its config tells what a config can. It is cast
    to the signature's dtype in place and put into evaluation mode. The folder is loaded again, and weights and answers compared.

    Raises Toolchain where they differ or the module cannot be expressed.
    """
    import torch

    model: Any = module.model
    module.eval().to("cpu", dtype=getattr(torch, signature.dtype))
    _write(model, source, target, signature)
    carried = (*folder.TOKENIZER_FILES, *folder.DESCRIPTION_FILES, *folder.SENTENCE_TRANSFORMERS_FILES, *_CARRIED)
    folder.copy_files(source, target, [name for name in dict.fromkeys(carried) if not (target / name).exists()])
    _update_pooling(target, signature)
    _compare(module, target, signature)


def _write(model: Any, source: Path, target: Path, signature: Signature) -> None:
    import torch
    from safetensors.torch import save_file

    from services.backends import shapes
    from services.backends.pretrained import silent_load

    try:
        attributes = shapes.describe(model)
    except ValueError as error:
        raise Toolchain(f"the changed model cannot be written: {error}") from error
    weights = _weights(model, source, signature)
    model.config.architectures, model.config.dtype = [type(model).__name__], getattr(torch, signature.dtype)
    with silent_load():
        if attributes:
            model.config.save_pretrained(target)
            save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
            (target / shapes.FILE).write_text(json.dumps(attributes, indent=1, sort_keys=True))
        else:  # by the library's own names, so that it can load the folder by itself
            model.save_pretrained(target, state_dict=weights, max_shard_size="1TB")


def _weights(model: Any, source: Path, signature: Signature) -> "dict[str, Tensor]":
    """Contiguous, a tied one once, and without a pooler that the source had no weights for: its values would be arbitrary."""
    from services.backends import shapes
    from services.backends.pretrained import optional_weights

    left_out = () if _has_pooler(source) else optional_weights(signature.task)
    kept = model.state_dict()
    return {names[0]: kept[names[0]].contiguous() for names in shapes.tied(model) if not (left_out and names[0].startswith(left_out))}


def _has_pooler(source: Path) -> bool:
    from safetensors import safe_open

    for path in source.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            if any("pooler." in name for name in file.keys()):  # noqa: SIM118  it is no dict
                return True
    return False


def _update_pooling(target: Path, signature: Signature) -> None:
    path = target / _POOLING
    if signature.task is not Task.EMBEDDING or not path.exists():
        return
    pooling = json.loads(path.read_text())
    width = signature.outputs[0].shape[-1]
    path.write_text(json.dumps(pooling | {name: width for name in _POOLING_WIDTHS if name in pooling}, indent=2, sort_keys=True))


def _compare(module: Any, target: Path, signature: Signature) -> None:
    import torch

    from services import backends
    from services.backends.torch import load_module

    attention = module.model.config._attn_implementation or "sdpa"
    try:
        loaded = load_module(target, signature, attention)
    except backends.LoadError as error:
        raise Toolchain(f"the changed model does not load: {error}") from error
    changed = [name for name, value in _states(loaded, module) if not torch.equal(*value)]
    if changed:
        raise Toolchain(f"the weight {changed[0]!r} was not written as it is")
    inputs = _probe(module.model, signature)
    with torch.inference_mode():
        difference = float((loaded(**inputs) - module(**inputs)).abs().max())
    if not difference <= 1e-5:  # a kernel may round otherwise where memory is aligned otherwise
        raise Toolchain(f"the model as written answers otherwise than the one in memory, by {difference:g}")


def _states(loaded: Any, module: Any) -> "list[tuple[str, tuple[Tensor, Tensor]]]":
    """Pairs of what both have, but for the pooler, which an embedding never reads."""
    left, right = loaded.state_dict(), module.state_dict()
    return [(name, (left[name], right[name])) for name in right if name in left and ".pooler." not in name]


def _probe(model: Any, signature: Signature) -> "dict[str, Tensor]":
    """A few rows of noise; texts of unlike lengths."""
    import torch

    from services.backends import shapes

    generator = torch.Generator().manual_seed(0)
    smallest = shapes.probe(model, signature)
    if not signature.task.takes_text:
        return {name: torch.rand(2, *value.shape[1:], generator=generator) for name, value in smallest.items()}
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    ids = torch.randint(model.config.vocab_size, mask.shape, generator=generator)
    return {"input_ids": ids, "attention_mask": mask}
