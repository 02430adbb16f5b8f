"""What the JSON files beside the weights say: lengths, labels, padding, pooling."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.optimization.failures import BadModel
from services.optimization.rows import read_model_tokenizer
from services.repository.manifest import Pooling, Task

# Families whose positions begin after the padding token's, so that the table is that much longer than the text may be.
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "data2vec-text", "longformer"})
_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLING = {"pooling_mode_mean_tokens": Pooling.MEAN, "pooling_mode_cls_token": Pooling.CLS}
_LARGEST_LENGTH = 1 << 20  # tokenizers write 10**30 for "no limit"
_LARGEST_SIDE = 1 << 13
# Ends of architectures' names. GPT-2's and a few others' are called heads.
_TASKS = {
    "ForSequenceClassification": Task.CLASSIFICATION,
    "ForTokenClassification": Task.TOKEN_CLASSIFICATION,
    "ForImageClassification": Task.IMAGE_CLASSIFICATION,
    "ForCausalLM": Task.CAUSAL_LM,
    "LMHeadModel": Task.CAUSAL_LM,
    "Model": Task.EMBEDDING,
}


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file, {} when there is none. Raises BadModel."""
    path = folder / name
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadModel(f"{name}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadModel(f"{name}: not a JSON object")
    return content


def refuse_remote_code(folder: Path) -> None:
    """Raises BadModel for a file that names Python code to be fetched or run."""
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in read_json(folder, name):
            raise BadModel(f"{name}: auto_map asks for code of the model's own, which is never run")


def task(folder: Path, config: Mapping[str, Any]) -> Task | None:
    """What config.json's architecture answers, None where its name does not tell."""
    if is_sentence_transformer(folder):
        return Task.EMBEDDING
    name = str((config.get("architectures") or [""])[0])
    return next((task for end, task in _TASKS.items() if name.endswith(end)), None)


def image_shape(folder: Path, config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(channels, height, width), -1 for sides of any size: the config's, else those that preprocessing makes. Raises BadModel."""
    channels = config.get("num_channels", 3)
    side = config.get("image_size") or _preprocessed_side(read_json(folder, "preprocessor_config.json"))
    height, width = side if isinstance(side, list) and len(side) == 2 else (side, side)
    for value in (channels, height, width):
        if type(value) is not int or not (0 < value <= _LARGEST_SIDE or value == -1):
            raise BadModel(f"config.json: images of {channels} channels and side {side} cannot be served; sides are 1 to {_LARGEST_SIDE}")
    return channels, height, width


def _preprocessed_side(preprocessor: Mapping[str, Any]) -> Any:
    """[height, width] after the last step that fixes both, else -1: a shortest edge alone leaves the other side open."""
    for step in ("crop_size", "size"):
        size = preprocessor.get(step)
        if isinstance(size, dict) and {"height", "width"} <= size.keys():
            return [size["height"], size["width"]]
    return -1


def _lengths(config: Mapping[str, Any]) -> list[Any]:
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if isinstance(positions, int) and config.get("model_type") in _OFFSET_POSITIONS:
        positions -= int(config.get("pad_token_id") or 0) + 1
    return [positions]


def max_tokens(folder: Path, config: Mapping[str, Any]) -> int:
    """The shortest of the limits that the files tell; 0 when they tell none. sentence-transformers' own comes first."""
    limits = [
        read_json(folder, "sentence_bert_config.json").get("max_seq_length"),
        read_json(folder, "tokenizer_config.json").get("model_max_length"),
        *_lengths(config),
    ]
    found = [limit for limit in limits if isinstance(limit, int) and 0 < limit < _LARGEST_LENGTH]
    return min(found, default=0)


def pad_token_id(folder: Path, config: Mapping[str, Any]) -> int:
    """The config's, else the tokenizer's, else 0: padding is masked, its value only has to be a valid row of the table."""
    configured = config.get("pad_token_id")
    if isinstance(configured, int) and configured >= 0:
        return configured
    token = read_json(folder, "tokenizer_config.json").get("pad_token")
    content = token.get("content") if isinstance(token, dict) else token
    found = read_model_tokenizer(folder).token_to_id(content) if isinstance(content, str) else None
    return found or 0


def check_vocabulary(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises BadModel when the tokenizer makes ids that the model has no row for."""
    size = config.get("vocab_size")
    largest = max(read_model_tokenizer(folder).get_vocab(with_added_tokens=True).values(), default=0)
    if isinstance(size, int) and largest >= size:
        raise BadModel(f"tokenizer.json: makes ids up to {largest}; config.json has a vocabulary of {size}")


def labels(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """`id2label` in the order of its ids, which must be 0 to count - 1. Absent: LABEL_0, …. Raises BadModel."""
    named = config.get("id2label")
    if named is None:
        return tuple(f"LABEL_{index}" for index in range(count))
    if not isinstance(named, dict) or sorted(named) != sorted(map(str, range(count))):
        raise BadModel(f"config.json: id2label does not name the {count} labels that the model answers")
    return tuple(str(named[str(index)]) for index in range(count))


def _pooling_mode(folder: Path, name: str) -> Pooling:
    config = read_json(folder, name)
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if isinstance(config.get("pooling_mode"), str):
        modes = [{"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}.get(config["pooling_mode"], config["pooling_mode"])]
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise BadModel(f"{name}: pooling by mean or by the first token is supported, not {modes}")
    return _POOLING[modes[0]]


def _modules(folder: Path) -> list[tuple[str, str]] | None:
    """(kind, path) of each module that sentence-transformers would chain; None without its file."""
    path = folder / "modules.json"
    if not path.exists():
        return None
    try:
        return [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadModel(f"modules.json: not a list of modules: {error}") from error


def is_sentence_transformer(folder: Path) -> bool:
    return (folder / "modules.json").exists()


def pooling_and_normalization(folder: Path) -> tuple[Pooling, bool]:
    """As sentence-transformers' files say; without them the mean, unnormalized, as that library then does. Raises BadModel."""
    modules = _modules(folder)
    if modules is None:
        return Pooling.MEAN, False
    kinds = [kind for kind, _ in modules]
    if tuple(kinds) not in (_MODULES, _MODULES[:2]):
        raise BadModel(f"modules.json: {' > '.join(_MODULES)} is supported, not {' > '.join(kinds)}")
    paths = dict(modules)
    if paths["Transformer"] or paths["Pooling"] != "1_Pooling":
        raise BadModel("modules.json: the transformer lies beside this file and its pooling in 1_Pooling")
    return _pooling_mode(folder, "1_Pooling/config.json"), "Normalize" in kinds
