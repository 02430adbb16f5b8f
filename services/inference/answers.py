"""Remembered answers: a bounded layer in memory in front of the cache service."""

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from services.inference.economics import Economics
from services.inference.layout import Values
from services.inference.shared_answers import SharedAnswers

log = structlog.get_logger("hone.answers")

_ENTRY_OVERHEAD_BYTES = 550  # of the mapping, one array's header and the key: 530 measured
_LARGEST_ANSWER_BYTES = 1 << 20  # a row of a language model's logits would put out hundreds of others


class MemoryAnswers:
    """Least recently used out first, bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[Values, int, str]] = OrderedDict()
        self.bytes = 0

    def get(self, key: bytes) -> Values | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, namespace: str, key: bytes, outputs: Values) -> None:
        """Keeps copies: a view would keep its whole batch alive."""
        size = sum(array.nbytes for array in outputs.values()) + _ENTRY_OVERHEAD_BYTES
        if size > self._max_bytes or key in self._entries:
            return
        self._entries[key] = ({name: array.copy() for name, array in outputs.items()}, size, namespace)
        self.bytes += size
        while self.bytes > self._max_bytes:
            self.bytes -= self._entries.popitem(last=False)[1][1]

    def drop(self, namespace: str) -> None:
        """Forgets what was put under a namespace. Goes through all entries: an index would cost memory for each of them."""
        for key in [key for key, entry in self._entries.items() if entry[2] == namespace]:
            self.bytes -= self._entries.pop(key)[1]


@dataclass(frozen=True, slots=True)
class Ledger:
    """Whether each layer pays, for one version."""

    memory: Economics = field(default_factory=Economics)
    shared: Economics = field(default_factory=Economics)


class Answers:
    """Memory first, then the cache service; either may be absent, and is left out where it costs a version more than it saves.

    `switched` is told of a layer and whether it is looked up from now on, for one more version.
    """

    def __init__(
        self,
        memory: MemoryAnswers | None,
        shared: SharedAnswers | None,
        *,
        switched: Callable[[str, bool], None] = lambda layer, on: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = memory
        self._shared = shared
        self._switched = switched
        self._clock = clock
        self._ledgers: defaultdict[str, Ledger] = defaultdict(Ledger)

    @property
    def enabled(self) -> bool:
        return self._memory is not None or self._shared is not None

    def ledger(self, namespace: str) -> Ledger:
        """What a version's lookups cost and saved."""
        return self._ledgers[namespace]

    async def get(self, namespace: str, keys: Sequence[bytes]) -> dict[bytes, Values]:
        """What is known of `keys`, in the layers that pay."""
        ledger = self._ledgers[namespace]
        found = self._recall(namespace, ledger.memory, keys)
        if self._shared is not None and len(found) < len(keys):
            missing = [key for key in keys if key not in found and ledger.shared.wants(key)]
            if missing and not self._shared.paused:
                found |= await self._ask(namespace, ledger, missing)
        return found

    def _recall(self, namespace: str, economics: Economics, keys: Sequence[bytes]) -> dict[bytes, Values]:
        if self._memory is None:
            return {}
        begun = self._clock()
        wanted = keys if economics.on else [key for key in keys if economics.wants(key)]
        if not wanted:
            return {}
        found = {key: outputs for key in wanted if (outputs := self._memory.get(key)) is not None}
        self._account(namespace, "memory", economics, len(wanted), sum(key in found for key in wanted), begun)
        return found

    async def _ask(self, namespace: str, ledger: Ledger, keys: Sequence[bytes]) -> Mapping[bytes, Values]:
        assert self._shared is not None  # noqa: S101 (the caller looked)
        begun = self._clock()
        found = await self._shared.get(namespace, keys)
        self._account(namespace, "shared", ledger.shared, len(keys), sum(key in found for key in keys), begun)
        for key, outputs in found.items():
            self._keep(namespace, ledger.memory, key, outputs)
        return found

    def _account(self, namespace: str, layer: str, economics: Economics, rows: int, hits: int, begun: float) -> None:
        now = self._clock()
        if economics.looked_up(rows, hits, now - begun, now):
            log.info("lookups of answers are switched", namespace=namespace, layer=layer, on=economics.on, reason=economics.reason)
            self._switched(layer, economics.on)

    def _keep(self, namespace: str, economics: Economics, key: bytes, outputs: Values) -> None:
        if self._memory is not None and economics.wants(key):
            self._memory.put(namespace, key, outputs)

    def put(self, namespace: str, outputs: Mapping[bytes, Values], compute_s: float) -> None:
        """Remembers rows that a call waited `compute_s` for, very large ones left out."""
        if not outputs:
            return
        ledger = self._ledgers[namespace]
        ledger.memory.computed(len(outputs), compute_s)
        ledger.shared.computed(len(outputs), compute_s)
        outputs = {
            key: values for key, values in outputs.items() if sum(array.nbytes for array in values.values()) <= _LARGEST_ANSWER_BYTES
        }
        for key, values in outputs.items():
            self._keep(namespace, ledger.memory, key, values)
        if self._shared is not None and (stored := {key: values for key, values in outputs.items() if ledger.shared.wants(key)}):
            self._shared.put(namespace, stored)

    def release(self, namespace: str, keys: Iterable[bytes]) -> None:
        """To be called once a call that looked `keys` up has ended, however: what it did not put, nobody is to wait for."""
        if self._shared is not None:
            self._shared.release(namespace, keys)

    async def clear(self, namespace: str) -> bool:
        """Forgets a version that was deleted, in the cache service. False where that is to be tried again."""
        return self._shared is None or await self._shared.clear(namespace)

    def drop(self, namespace: str) -> None:
        """Forgets a version that this replica unloaded for good; other replicas may serve it, and a roll-back bring it back."""
        ledger = self._ledgers.pop(namespace, Ledger())
        for layer, economics in (("memory", ledger.memory), ("shared", ledger.shared)):
            if not economics.on:
                self._switched(layer, True)
        if self._memory is not None:
            self._memory.drop(namespace)

    async def close(self) -> None:
        if self._shared is not None:
            await self._shared.close()
