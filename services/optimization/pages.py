"""Pages over versions, which are ordered by name and number."""

from collections.abc import Sequence

from services.chassis.faults import InvalidField

Key = tuple[str, int]  # name, version
DEFAULT_SIZE = 100
MAX_SIZE = 1000


def page_size(asked: int) -> int:
    """0 is the default. Raises InvalidField."""
    if not 0 <= asked <= MAX_SIZE:
        raise InvalidField("page_size", f"must be 1 to {MAX_SIZE}, not {asked}")
    return asked or DEFAULT_SIZE


def page_start(token: str) -> Key:
    """The key that the page comes after. Raises InvalidField."""
    name, _, version = token.partition("@")
    if token and not version.isdecimal():
        raise InvalidField("page_token", "is not one that this server gave")
    return name, int(version or 0)


def cut(keys: Sequence[Key], size: int) -> tuple[Sequence[Key], str]:
    """The page's keys, and the token of the next page or "". `keys` come after the page's start, in order."""
    return keys[:size], "{}@{}".format(*keys[size - 1]) if len(keys) > size else ""
