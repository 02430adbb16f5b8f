"""What a store may hold after it was killed: a model that is told what was begun and what was acknowledged, in that order."""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from math import inf
from typing import Any

DIGEST_BYTES = 16
LARGEST_BYTES = 40_000

Name = tuple[str, str]  # namespace and key


def value_of(name: Name, number: int) -> bytes:
    """A value that tells under which name and as which it was put, and is told apart from every other by its digest."""
    chance = random.Random(number)
    told = f"{name[0]} {name[1]} {number} ".encode() + chance.randbytes(chance.randrange(LARGEST_BYTES))
    return blake2b(told, digest_size=DIGEST_BYTES).digest() + told


def number_of(name: Name, value: bytes) -> int:
    """Which value of this name it is. Raises AssertionError for what was never put under it."""
    told = value[DIGEST_BYTES:]
    assert value[:DIGEST_BYTES] == blake2b(told, digest_size=DIGEST_BYTES).digest(), f"a broken value under {name}"
    namespace, key, number, _ = told.split(b" ", 3)
    assert (namespace.decode(), key.decode()) == name, f"a value of {namespace!r} {key!r} under {name}"
    return int(number)


@dataclass(slots=True)
class _Kept:
    """`values`: what may be there, and when its put was acknowledged. `may_miss`: nothing may be there too."""

    values: dict[int, float] = field(default_factory=dict)
    may_miss: bool = True


class KeptValues:
    """Takes events in their order. Operations on one key follow each other; clears run beside them.

    A store that `forgets` may have nothing under any key; what it forgot never comes back.
    """

    def __init__(self, forgets: bool) -> None:
        self.forgotten = 0  # values that were there for certain and were not found
        self._forgets = forgets
        self._now = 0  # events so far
        self._kept: dict[Name, _Kept] = {}
        self._putting: dict[Name, tuple[int, int]] = {}  # the value's number, and when its put began
        self._finding: dict[Name, tuple[set[int], int]] = {}  # what might be there when the look-up began, and when that was
        self._clearing: dict[str, dict[int, int]] = {}  # by namespace and by whom: when it began
        self._cleared: Counter[str] = Counter()  # when the last one was acknowledged
        self._epochs: Counter[str] = Counter()
        self._events: Mapping[str, Callable[..., None]] = {
            "put": self.begin_put,
            "put done": self.end_put,
            "find": self.begin_find,
            "find done": self.end_find,
            "delete": self.begin_delete,
            "delete done": self.end_delete,
            "clear": self.begin_clear,
            "clear done": self.end_clear,
            "epoch": self.find_epoch,
        }

    def begin_put(self, namespace: str, key: str, number: int) -> None:
        self._now += 1
        self._of((namespace, key)).values[number] = inf
        self._putting[namespace, key] = (number, self._now)

    def end_put(self, namespace: str, key: str, taken: bool, conditional: bool) -> None:
        """`conditional`: only in the epoch in which it began, so that a clear may have it refused."""
        self._now += 1
        name = (namespace, key)
        number, begun = self._putting.pop(name)
        overlapped = self._clears_since(namespace, begun)
        if taken:
            self._kept[name] = _Kept({number: self._now}, may_miss=overlapped)
        else:
            assert conditional, f"a put under {name} was refused that was to be taken in any case"
            assert overlapped, f"a put under {name} was refused for a clear that there was not"
            del self._of(name).values[number]

    def begin_delete(self, namespace: str, key: str) -> None:
        self._of((namespace, key)).may_miss = True

    def end_delete(self, namespace: str, key: str) -> None:
        self._kept[namespace, key] = _Kept()

    def begin_clear(self, namespace: str, who: int) -> None:
        self._now += 1
        self._clearing.setdefault(namespace, {})[who] = self._now
        for kept in self._of_namespace(namespace):
            kept.may_miss = True

    def end_clear(self, namespace: str, who: int) -> None:
        self._now += 1
        began = self._clearing[namespace].pop(who)
        self._cleared[namespace] = self._now
        self._epochs[namespace] += 1
        for kept in self._of_namespace(namespace):
            kept.values = {number: put for number, put in kept.values.items() if put > began}

    def begin_find(self, namespace: str, key: str) -> None:
        self._now += 1
        self._finding[namespace, key] = (set(self._of((namespace, key)).values), self._now)

    def end_find(self, namespace: str, key: str, number: int | None) -> None:
        """What was found is what is there, unless a clear came between; what was not found never comes back."""
        name = (namespace, key)
        kept, (might_be, begun) = self._of(name), self._finding.pop(name)
        if number is None:
            assert kept.may_miss or self._forgets, f"a value under {name} was acknowledged and is not there"
            self.forgotten += not kept.may_miss
            self._kept[name] = _Kept()
        else:
            assert number in might_be, f"value {number} under {name} was deleted, cleared or replaced, or is still to be put"
            if not self._clears_since(namespace, begun):
                self._kept[name] = _Kept({number: kept.values[number]}, may_miss=False)

    def kill(self) -> None:
        """What was under way has happened or not, and does not happen later. Of clears, `find_epoch` tells which of the two."""
        self._now += 1
        for name, (number, _) in self._putting.items():
            self._kept[name].values[number] = self._now
        self._putting.clear()
        self._finding.clear()

    def find_epoch(self, namespace: str, epoch: int) -> None:
        """The first look after a kill: it tells how many of the clears under way had happened."""
        under_way = list(self._clearing.get(namespace, ()))
        happened = epoch - self._epochs[namespace]
        assert 0 <= happened <= len(under_way), f"epoch {epoch} of {namespace}, and {happened} of {len(under_way)} clears under way"
        if happened == len(under_way):
            for who in under_way:
                self.end_clear(namespace, who)
        else:
            del self._clearing[namespace]
            self._epochs[namespace] = epoch

    def find_no_epochs(self) -> None:
        """Instead, where the epochs are not told."""
        self._clearing.clear()

    def take(self, kind: str, *event: Any) -> None:
        """One of the above, as a worker tells it."""
        self._events[kind](*event)

    def _clears_since(self, namespace: str, begun: int) -> bool:
        return bool(self._clearing.get(namespace)) or self._cleared[namespace] > begun

    def _of(self, name: Name) -> _Kept:
        return self._kept.setdefault(name, _Kept())

    def _of_namespace(self, namespace: str) -> list[_Kept]:
        return [kept for name, kept in self._kept.items() if name[0] == namespace]
