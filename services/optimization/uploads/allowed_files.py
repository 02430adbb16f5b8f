"""Which files an uploaded model may consist of. Looks at names, links and first bytes; understands no content."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from services.optimization.failures import BadModel
from services.repository.manifest import FILE_NAME as MANIFEST

# Read by somebody: an unlisted name is refused, so that nothing rides along unseen.
_MODEL_FILES = re.compile(
    r"config\.json|shapes\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|model\.onnx"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.txt|vocab\.json|merges\.txt"
    r"|preprocessor_config\.json|modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json|\d_(Pooling|Normalize|Transformer)/config\.json"
)
# Kept as data that nobody opens, so that a folder as published uploads as it is.
_DOCUMENTS = re.compile(r"(README|LICENSE|NOTICE)(\.(md|txt))?|\.gitattributes|data_config\.json|generation_config\.json|[\w-]+\.(txt|md)")
_PROGRAMS = re.compile(r".*\.(ts|xml|blob|bin|pt|pth|pt2|pkl|pickle|ckpt|npy|npz|joblib|h5|keras|so|py|zip|tar|gz|7z)", re.IGNORECASE)

# A pickle of protocol 2 or later, a zip (what torch.save and torch.jit.save write), gzip, ELF.
_FORBIDDEN_STARTS = (*(b"\x80" + bytes([protocol]) for protocol in range(2, 6)), b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"\x7fELF")
MAX_FILES = 256


def _entries(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Relative path and lstat of everything below, links unfollowed."""
    for root, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            path = Path(root, name)
            yield path.relative_to(folder).as_posix(), path.lstat()


def _check_name(name: str) -> None:
    if _PROGRAMS.fullmatch(name):
        raise BadModel(
            f"{name}: files of this kind may be programs, which are made by jobs alone; weights are taken as safetensors or ONNX"
        )
    if not (_MODEL_FILES.fullmatch(name) or _DOCUMENTS.fullmatch(name) or name == MANIFEST):
        raise BadModel(f"{name}: a model has no file of this name")


def _check_entry(name: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        raise BadModel(f"{name}: neither a regular file nor a folder; links are refused")
    if status.st_nlink != 1:
        raise BadModel(f"{name}: a hard link")
    _check_name(name)


def check_tree(folder: Path) -> None:
    """Names and kinds of files, without opening any. Raises BadModel."""
    if folder.is_symlink() or not folder.is_dir():
        raise BadModel(f"{folder.name}: not a folder")
    for index, (name, status) in enumerate(_entries(folder)):
        if index >= MAX_FILES:
            raise BadModel(f"model: more than {MAX_FILES} files")
        _check_entry(name, status)


def check_starts(folder: Path) -> None:
    """No pickle, archive or program under any name. Raises BadModel.

    A safetensors header may begin with any length byte, 0x80 too: its ninth byte, "{", tells it from a pickle.
    """
    for name, status in _entries(folder):
        if not stat.S_ISREG(status.st_mode):
            continue
        with (folder / name).open("rb") as file:
            start = file.read(9)
        if start.startswith(_FORBIDDEN_STARTS) and not (name.endswith(".safetensors") and start[8:] == b"{"):
            raise BadModel(f"{name}: its content is a pickle, an archive or a program")
