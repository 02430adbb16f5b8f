"""A checked folder to its signature. Runs in the inspection's child process alone: here the files are really opened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services import backends
from services.optimization.failures import BadModel
from services.optimization.uploads import allowed_files, answer_shape, configuration, safetensors_header
from services.optimization.uploads.configuration import read_json
from services.repository.manifest import Format, Signature, Task, TensorSpec

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_TEXT_INPUTS = tuple(TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in ("input_ids", "attention_mask"))


def parse_folder(folder: Path, task: Task | None) -> Signature:
    """Raises BadModel."""
    allowed_files.check_tree(folder)
    allowed_files.check_starts(folder)
    configuration.refuse_remote_code(folder)
    has_onnx, has_weights = (folder / "model.onnx").exists(), any(folder.glob("*.safetensors"))
    if has_onnx and has_weights:
        raise BadModel("model.onnx: lies beside safetensors; a model is one of them")
    if has_onnx:
        from services.optimization.uploads.onnx_parsing import parse_onnx

        return parse_onnx(folder, task)
    if not has_weights:
        raise BadModel("model: neither model.safetensors nor model.onnx")
    return _parse_huggingface(folder, task)


def _parse_huggingface(folder: Path, task: Task | None) -> Signature:
    config = read_json(folder, "config.json")
    if not config:
        raise BadModel("config.json: missing")
    dtype = _weights_dtype(folder)
    _check_extent(folder, config)
    signature = _describe(folder, config, task or _task_of(folder, config), dtype)
    _check_shapes(folder)
    return answer_shape.described(signature, answer_shape.answer_to_sample(folder, signature), config)


def _task_of(folder: Path, config: Mapping[str, Any]) -> Task:
    found = configuration.task(folder, config)
    if found is None:
        name = str((config.get("architectures") or [""])[0])
        raise BadModel(f"config.json: the architecture {name!r} answers none of the tasks that are served; name the task to choose")
    return found


def _shards(folder: Path) -> list[Path]:
    """The files of weights; of a sharded model exactly those that its index names. Raises BadModel."""
    files = sorted(folder.glob("*.safetensors"))
    index = read_json(folder, "model.safetensors.index.json")
    if not index:
        if [file.name for file in files] != ["model.safetensors"]:
            raise BadModel("model.safetensors.index.json: missing; it says which weights are in which file")
        return files
    named = index.get("weight_map")
    if not isinstance(named, dict) or {*map(str, named.values())} != {file.name for file in files}:
        raise BadModel("model.safetensors.index.json: names other files than there are")
    return files


def _weights_dtype(folder: Path) -> str:
    """The one floating-point type of all weights, as torch names it. Raises BadModel."""
    found = {tensor["dtype"] for shard in _shards(folder) for tensor in safetensors_header.tensors(shard).values()}
    floating = sorted(dtype for dtype in found if dtype.startswith(("F", "BF")))
    if len(floating) != 1 or floating[0] not in _DTYPES:
        raise BadModel(f"model.safetensors: weights of one type among {', '.join(_DTYPES)} are supported, not {floating}")
    return _DTYPES[floating[0]]


def _describe(folder: Path, config: Mapping[str, Any], task: Task, dtype: str) -> Signature:
    """Everything but the output's width and labels, which the loaded model tells."""
    if task is Task.TENSOR:
        raise BadModel("config.json: a Hugging Face folder answers texts or images, not named tensors")
    signature = Signature(task=task, format=Format.HUGGINGFACE, inputs=(), outputs=(), dtype=dtype)
    if task is Task.IMAGE_CLASSIFICATION:
        pixels = TensorSpec(name="pixel_values", datatype="FP32", shape=(-1, *configuration.image_shape(folder, config)))
        return signature.model_copy(update={"inputs": (pixels,), "outputs": (answer_shape.output_spec("logits", task),)})
    return signature.model_copy(update=_of_text(folder, config, task))


def _of_text(folder: Path, config: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """A text model's part of its signature."""
    if not (folder / "tokenizer.json").exists():
        raise BadModel("tokenizer.json: missing; a text model is served with its own tokenizer")
    configuration.check_vocabulary(folder, config)
    pooling, normalize = configuration.pooling_and_normalization(folder) if task is Task.EMBEDDING else (None, False)
    return {
        "inputs": _TEXT_INPUTS,
        "outputs": (answer_shape.output_spec("embedding" if task is Task.EMBEDDING else "logits", task),),
        "max_tokens": configuration.max_tokens(folder, config),
        "pooling": pooling,
        "normalize": normalize,
        "pad_token_id": configuration.pad_token_id(folder, config),
    }


def _check_shapes(folder: Path) -> None:
    """Raises BadModel unless a pruned model's shapes.json holds what loading understands, within bounds."""
    from services.backends import shapes

    try:
        if shapes.has_shapes(folder):
            shapes.check(folder)
    except backends.LoadError as error:
        raise BadModel(str(error)) from error


_EXTENTS = ("size", "sizes", "layer", "layers", "head", "heads", "embeddings", "dim", "embd", "inner", "positions", "depths", "channels")


def _check_extent(folder: Path, config: Mapping[str, Any]) -> None:
    """Before anything is built by the config: its dimensions are no larger than the weights can fill. Raises BadModel."""
    widest = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    for name, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        largest = max((number for number in numbers if isinstance(number, int)), default=0)
        if largest > widest and name.endswith(_EXTENTS):
            raise BadModel(f"config.json: {name} is {largest}; the weights hold {widest} bytes in all")
