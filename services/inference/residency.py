"""Which versions leave memory so that another fits, and what a version will take there: pure decisions."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

Key = tuple[str, int]  # model, version

# Beside its weights a version has a tokenizer, threads and an engine's session, however small its files are.
OVERHEAD_BYTES = 8 << 20
# Weights in memory over files on disk. Engines that copy or repack weights hold more than the file; the first guess errs on that side.
FIRST_RATIO, MOST_RATIO = 1.5, 4.0
_LAST = 5  # loads of a format that its ratio is the median of


class TooLarge(Exception):
    """A version that does not fit into the memory for models, whatever else is unloaded."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A version in memory, or on its way there. `held`: by calls, or it is being loaded. `pinned`: held until somebody says otherwise.

    Times are seconds on one clock.
    """

    key: Key
    size_bytes: int
    last_used: float
    loaded: float
    held: bool = False
    pinned: bool = False


def to_unload(residents: Iterable[Resident], need_bytes: int, budget_bytes: int, now: float, spare_s: float) -> tuple[Key, ...] | None:
    """The versions to unload so that `need_bytes` more fit; None where what is held leaves no room for now, and nothing is to go then.

    Least recently used first. One that was loaded less than `spare_s` ago goes only when the others do not suffice: callers of more
    versions than fit would otherwise spend their time loading. A budget of 0 is none.

    Raises:
        TooLarge: the pinned versions alone leave too little.
    """
    found = list(residents)
    pinned = sum(resident.size_bytes for resident in found if resident.pinned)
    if not budget_bytes:
        return ()
    if need_bytes > budget_bytes - pinned:
        raise TooLarge(_too_large(need_bytes, budget_bytes, pinned))
    excess = need_bytes + sum(resident.size_bytes for resident in found) - budget_bytes
    if excess <= 0:
        return ()
    free = sorted(
        (resident for resident in found if not resident.held and not resident.pinned),
        key=lambda resident: (now - resident.loaded < spare_s, resident.last_used),
    )
    if sum(resident.size_bytes for resident in free) < excess:
        return None
    return _smallest_prefix(free, excess)


def _smallest_prefix(ordered: Sequence[Resident], excess: int) -> tuple[Key, ...]:
    """The first that free `excess` bytes together, less those that the later ones among them made superfluous."""
    chosen: list[Resident] = []
    for resident in ordered:
        if excess <= 0:
            break
        chosen.append(resident)
        excess -= resident.size_bytes
    for resident in reversed(chosen[:]):
        if resident.size_bytes <= -excess:
            chosen.remove(resident)
            excess += resident.size_bytes
    return tuple(resident.key for resident in chosen)


def _too_large(need: int, budget: int, pinned: int) -> str:
    held = f", of which versions that LoadModel keeps hold {_megabytes(pinned)}" if pinned else ""
    return f"needs about {_megabytes(need)} of memory; models may hold {_megabytes(budget)}{held}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


class Footprints:
    """What versions hold in memory: as measured when they were loaded, before that estimated from their files.

    `kind` is what decides how weights become memory: the format.
    """

    def __init__(self) -> None:
        self._measured: dict[Key, int] = {}
        self._ratios: dict[str, deque[float]] = {}

    def expected(self, key: Key, kind: str, files_bytes: int) -> int:
        """Bytes that loading the version will take."""
        ratio = median(self._ratios.get(kind) or [FIRST_RATIO])
        return self._measured.get(key, round(OVERHEAD_BYTES + ratio * files_bytes))

    def least(self, key: Key, files_bytes: int) -> int:
        """Bytes that it takes for certain: a version is not refused for what others of its format took."""
        return self._measured.get(key, OVERHEAD_BYTES + files_bytes)

    def learn(self, key: Key, kind: str, files_bytes: int, grown_bytes: int, expected_bytes: int) -> int:
        """What a version holds, by how much the process grew while it was loaded.

        Never less than its files: weights that are mapped, or that took the place of others unloaded before, do not show as growth.
        Never more than a few times as much, and the least of several loads: other versions' calls grow the process too. The first
        load of a format brings the engine's libraries, which stay: then `expected_bytes` is as good as is known.
        """
        if kind not in self._ratios:
            self._ratios[kind] = deque(maxlen=_LAST)
            return expected_bytes
        size = max(files_bytes, min(grown_bytes, round(OVERHEAD_BYTES + MOST_RATIO * files_bytes)))
        self._ratios[kind].append(max(1.0, (size - OVERHEAD_BYTES) / max(1, files_bytes)))
        self._measured[key] = min(size, self._measured.get(key, size))
        return self._measured[key]

    def forget(self, key: Key) -> None:
        """Of a version that is gone for good."""
        self._measured.pop(key, None)


def claim(expected_bytes: int, least_bytes: int, budget_bytes: int, pinned_bytes: int) -> int:
    """What is set aside for a version: what is expected, at most what there is where that may suffice. A budget of 0 is none."""
    if not budget_bytes:
        return expected_bytes
    return max(least_bytes, min(expected_bytes, budget_bytes - pinned_bytes))
