"""A model folder as a set of files: its digest, its size, what is carried along unchanged."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from services.repository.manifest import FILE_NAME as MANIFEST
from services.repository.manifest import Signature

# What describes a model beside its weights. Carried along by every technique, so that a result, downloaded and uploaded
# again, is still read as what it is: labels and lengths from config.json, the size of images from preprocessor_config.json,
# pooling from sentence-transformers' files.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt")
DESCRIPTION_FILES = ("config.json", "preprocessor_config.json", "sentence_bert_config.json")
SENTENCE_TRANSFORMERS_FILES = ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json")


def files(folder: Path) -> list[str]:
    """Relative paths of the model's files, sorted; the manifest describes them and is not one of them."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != MANIFEST)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its relative path."""
    return {name: file_sha256(folder / name) for name in files(folder)}


def content_digest(folder: Path, signature: Signature) -> str:
    """SHA-256 over the files and the signature: two folders with one digest answer equally."""
    content = {"files": digests(folder), "signature": signature.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def size_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in files(folder))


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copies those of `names` that exist, with their folders."""
    for name in names:
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)
