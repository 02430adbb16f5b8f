"""bfloat16 weights: half the bytes of FP32 with its range, and 8 bits of precision."""

import json
from pathlib import Path

from services.optimization import folder
from services.optimization.environment import has_bf16
from services.optimization.failures import UnsupportedOperator
from services.optimization.techniques.technique import Context, Outcome, Parameters, Technique
from services.repository.manifest import Format, Task

DTYPE = "bfloat16"


def _cast_weights(source: Path, target: Path) -> dict[str, int]:
    """One safetensors file to another; integer tensors stay. Answers how many tensors were cast and kept."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(source)
    cast = {name: value.to(torch.bfloat16) for name, value in tensors.items() if value.is_floating_point()}
    save_file(tensors | cast, target, metadata={"format": "pt"})
    return {"cast_tensors": len(cast), "kept_tensors": len(tensors) - len(cast)}


def _write_config(source: Path, target: Path) -> None:
    config = json.loads(source.read_text())
    config.pop("torch_dtype", None)  # the older name of `dtype`; one of them would contradict the other
    target.write_text(json.dumps(config | {"dtype": DTYPE}, indent=2, sort_keys=True))


def _apply(context: Context) -> Outcome:
    if context.signature.task is Task.TENSOR:
        raise UnsupportedOperator("bf16 casts Hugging Face text models")
    weights = [name for name in folder.files(context.source) if name.endswith(".safetensors")]
    notes = {"cast_tensors": 0, "kept_tensors": 0}
    for index, name in enumerate(weights):
        context.progress(index / len(weights), f"casting {name}")
        counts = _cast_weights(context.source / name, context.target / name)
        notes = {key: notes[key] + counts[key] for key in notes}
    described = (*folder.TOKENIZER_FILES, *folder.DESCRIPTION_FILES, *folder.SENTENCE_TRANSFORMERS_FILES, "model.safetensors.index.json")
    folder.copy_files(context.source, context.target, described)
    _write_config(context.source / "config.json", context.target / "config.json")
    return Outcome(context.signature.model_copy(update={"dtype": DTYPE}), notes)


def _note_hardware(features: frozenset[str]) -> str:
    if has_bf16(features):
        return ""
    return "This processor has no bfloat16 arithmetic and emulates it: the model gets smaller and most likely slower."


TECHNIQUE = Technique(
    name="bf16",
    version=1,
    summary="Stores and computes weights in bfloat16: half the size, near-equal answers; faster where the processor has bfloat16 units.",
    parameters=Parameters,
    source_formats=(Format.HUGGINGFACE,),
    target_format=Format.HUGGINGFACE,
    apply=_apply,
    note_hardware=_note_hardware,
)
