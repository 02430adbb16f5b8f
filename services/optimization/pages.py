"""Pages over versions, which are ordered by name and number."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import structlog

from services.chassis.faults import InvalidField
from services.repository.versions import Damaged

log = structlog.get_logger("hone.pages")

M_co = TypeVar("M_co", covariant=True)
M = TypeVar("M")
Key = tuple[str, int]  # name, version
DEFAULT_SIZE = 100
MAX_SIZE = 1000


class Listed(Protocol[M_co]):
    """Named versions with their manifests."""

    def names(self) -> list[str]: ...

    def versions(self, name: str) -> list[int]: ...

    def manifest(self, name: str, version: int) -> M_co:
        """Raises LookupError, Damaged."""
        ...


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


def page(listed: Listed[M], name: str, size: int, after: Key) -> tuple[list[M], str]:
    """The manifests of the page after a key, of one name or of all for "", and the token of the next page or ""."""
    names = [name] if name else [known for known in listed.names() if known >= after[0]]
    keys = [(known, version) for known in names for version in listed.versions(known) if (known, version) > after]
    token = "{}@{}".format(*keys[size - 1]) if len(keys) > size else ""
    return list(_readable(listed, keys[:size])), token


def _readable(listed: Listed[M], keys: Sequence[Key]) -> Iterable[M]:
    """One damaged version must not hide all others; asked for by itself it is still told of."""
    for name, version in keys:
        try:
            yield listed.manifest(name, version)
        except (Damaged, LookupError) as error:  # or deleted since it was listed
            log.error("a version cannot be listed", version=f"{name}@{version}", error=str(error))
