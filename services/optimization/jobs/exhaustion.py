"""Telling a full disk and a lack of memory from other faults, through the wrappings that libraries put around them."""

import errno
from collections.abc import Iterator

_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_MEMORY = frozenset({errno.ENOMEM})
# Libraries in C++ and Rust pass the system's words on, and not its number.
_DISK_TEXTS = ("no space left on device", "disk quota exceeded", "file too large")
_MEMORY_TEXTS = (
    "cannot allocate memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "failed to allocate memory",
)


def disk_is_full(error: BaseException) -> bool:
    return any(_tells(each, _DISK, _DISK_TEXTS) for each in _chain(error))


def memory_is_full(error: BaseException) -> bool:
    return any(isinstance(each, MemoryError) or _tells(each, _MEMORY, _MEMORY_TEXTS) for each in _chain(error))


def _tells(error: BaseException, numbers: frozenset[int], texts: tuple[str, ...]) -> bool:
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    return any(text in str(error).lower() for text in texts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and what that was."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        yield found
        seen.add(id(found))
        found = found.__cause__ or found.__context__
