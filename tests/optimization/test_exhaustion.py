"""A full disk and a lack of memory, as the libraries wrap them."""

import errno

import pytest

from services.optimization.jobs.exhaustion import disk_is_full, memory_is_full


def wrapped(error: BaseException) -> BaseException:
    """As a library raises it from its own."""
    try:
        try:
            raise error
        except BaseException as inner:
            raise RuntimeError("could not save the model") from inner
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no"), OSError(errno.EFBIG, "no"), RuntimeError("I/O error: No space left on device (os error 28)")]
)
def test_a_full_disk_is_told_through_any_wrapping(error: BaseException) -> None:
    assert disk_is_full(error)
    assert disk_is_full(wrapped(error))
    assert not memory_is_full(wrapped(error))


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOMEM, "no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_lack_of_memory_is_told_through_any_wrapping(error: BaseException) -> None:
    assert memory_is_full(error)
    assert memory_is_full(wrapped(error))
    assert not disk_is_full(wrapped(error))


def test_other_faults_are_neither() -> None:
    error = wrapped(OSError(errno.EACCES, "not allowed"))
    error.__context__ = error  # a ring ends the walk
    assert not disk_is_full(error)
    assert not memory_is_full(error)
