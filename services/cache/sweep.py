"""The removal of rows that a cleared namespace left, a slice at a time."""

from collections.abc import Callable

from services.cache.database import Database
from services.cache.namespaces import PREFIX_BYTES

_ROWS = 128  # of a slice: a caller that comes meanwhile waits for one slice at most
_LIVE_PREFIXES = 64  # passed over in a slice


class Sweep:
    """Walks the prefixes that rows lie under, in order, and removes the rows of those that do not live.

    It finds them in the index of rows, so that nothing about them need be remembered, over a restart or at all.
    """

    def __init__(self, is_live: Callable[[bytes], bool]) -> None:
        self._is_live = is_live
        self._from = b""
        self.pending = True  # a process that ended in the middle of a sweep left the rest

    def begin(self) -> None:
        self._from, self.pending = b"", True

    def end(self) -> None:
        self.pending = False

    def slice(self, database: Database) -> bool:
        """Removes rows under one prefix at most; whether there may be more. Raises sqlite3.Error."""
        for _ in range(_LIVE_PREFIXES):
            first = database.first_row(self._from)
            if first is None:
                self.end()
                return False
            prefix = first[:PREFIX_BYTES]
            if not self._is_live(prefix):
                database.remove_rows(first, _ROWS, within=_after(prefix))
                return True
            following = _after(prefix)
            if following is None:
                self.end()
                return False
            self._from = following
        return True


def _after(prefix: bytes) -> bytes | None:
    """The first prefix that is greater; None where there is none."""
    number = int.from_bytes(prefix.ljust(PREFIX_BYTES, b"\0"), "big") + 1
    return number.to_bytes(PREFIX_BYTES, "big") if number < 1 << 8 * PREFIX_BYTES else None
