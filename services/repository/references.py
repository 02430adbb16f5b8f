"""Names and references: `minilm` (its `stable` channel), `minilm@3`, `minilm:canary`."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CHANNEL = re.compile(r"[a-z][a-z0-9-]{0,31}")
DEFAULT_CHANNEL = "stable"
_PATH_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MAX_DEPTH = 4


class BadName(ValueError):
    """A name, reference or path breaks its rule; the text says which rule."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Either `version` is set or `channel` is."""

    name: str
    version: int | None = None
    channel: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.version}" if self.version is not None else f"{self.name}:{self.channel}"


@lru_cache(maxsize=1024)  # every call names its model
def parse(text: str) -> Reference:
    """Reads a reference. Raises BadName."""
    name, *rest = re.split("([@:])", text, maxsplit=1)
    check_name(name)
    match rest:
        case ["@", version]:
            return Reference(name, version=_version(version))
        case [":", channel]:
            return Reference(name, channel=check_channel(channel))
    return Reference(name, channel=DEFAULT_CHANNEL)


def check_name(name: str, noun: str = "model") -> str:
    """Returns `name` unchanged. Raises BadName."""
    if not NAME.fullmatch(name):
        raise BadName(f"{noun} name {name[:80]!r} must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit")
    return name


def check_channel(channel: str) -> str:
    """Returns `channel` unchanged. Raises BadName."""
    if not CHANNEL.fullmatch(channel):
        raise BadName(f"channel {channel[:80]!r} must be 1 to 32 lower-case letters, digits or '-', the first a letter")
    return channel


def check_path(path: str) -> str:
    """Returns a file's path inside a version, unchanged. Raises BadName where it is absolute, hidden or leaves its folder."""
    parts = path.split("/")
    if len(parts) > _MAX_DEPTH or not all(_PATH_PART.fullmatch(part) for part in parts) or str(PurePosixPath(path)) != path:
        raise BadName(f"path {path[:200]!r} must be 1 to {_MAX_DEPTH} plain names joined by '/', without '..' and hidden files")
    return path


def _version(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise BadName(f"version {text[:80]!r} must be a whole number from 1")
    return int(text)
