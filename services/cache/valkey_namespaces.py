"""The namespaces of a Valkey store: their records on the server, what is remembered of them, and asking under their prefix."""

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.cache.store import Namespace
from services.cache.valkey_server import ValkeyServer
from services.chassis import faults

FRESH_S = 1.0  # how long `describe` answers from the last call's knowledge; older, and another replica's Configure would be seen late
MOST_KNOWN = 4096  # namespaces; one that is forgotten costs a round trip
ATTEMPTS = 4  # at a namespace that is cleared while it is asked

_FIELDS = ("prefix", "epoch", "ttl_s")
_PREFIX_BYTES = 8
# A namespace that the server lost must not have an old epoch again, or what was computed before a Clear could be stored after it. So epochs
# count from a random number, and never from zero.
_FIRST_EPOCH_BITS = 48


@dataclass(frozen=True, slots=True)
class Known:
    """A namespace's record as the server last told it, at `read_s` by the clock."""

    prefix: bytes
    epoch: int
    ttl_s: float | None
    read_s: float


Commands = Callable[[Any, Known], object]  # queues commands under a namespace's prefix on the pipeline that it is given
Prepare = Callable[[Known], Awaitable[None]]  # what commands under a prefix need and take long to get ready


class ValkeyNamespaces:
    """A record is the hash `hone:namespace:` and the name, of prefix, epoch and life. It has no end, where rows do.

    What is remembered of it saves a round trip, and is held against the record at every use.
    """

    def __init__(self, server: ValkeyServer, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._clock = clock
        self._known: dict[str, Known] = {}

    async def ask(
        self, namespace: str, commands: Commands, *, begin: bool = False, prepare: Prepare | None = None
    ) -> tuple[Known | None, list[Any]]:
        """The namespace's record and the answers to `commands` under it; none of a namespace that there is not, unless it is to `begin`.

        Rows under a prefix that is out of date are in nobody's reach: reading finds nothing, and what is written is never read. So no
        MULTI and no script is needed; it is done again under the right one.

        Raises:
            faults.Unavailable: the server does not answer, or the namespace is cleared all the time.
        """
        for _ in range(ATTEMPTS):
            known = self._known.get(namespace)
            if known is None and begin:
                known = await self._begin(namespace)
            if known is not None and prepare is not None:
                await prepare(known)
            current, answers = await self._ask_under(namespace, known, commands)
            if current is None and not begin:
                return None, []
            if current is not None and known is not None and current.prefix == known.prefix:
                return current, answers
        raise faults.Unavailable(f"namespace {namespace} is being cleared all the time")

    async def clear(self, namespace: str, also: Callable[[Any], object]) -> int:
        """The new epoch; what `also` queues is done in the same step."""
        name = _name(namespace)

        def commands(pipeline: Any) -> None:
            pipeline.hsetnx(name, "epoch", _first_epoch())
            pipeline.hset(name, "prefix", secrets.token_bytes(_PREFIX_BYTES))
            pipeline.hincrby(name, "epoch", 1)
            also(pipeline)
            pipeline.hmget(name, _FIELDS)

        return self._learn_begun(namespace, await self._server.send(commands, atomic=True)).epoch

    async def describe(self, namespace: str) -> Namespace:
        """From memory where the namespace was asked for a moment ago. An epoch that is behind for that only has a put refused.

        Of a server that does not answer it tells an epoch that no namespace has.
        """
        known = self._known.get(namespace)
        if known is None or self._clock() - known.read_s > FRESH_S:
            try:
                known, _ = await self.ask(namespace, _nothing, begin=True)
            except faults.Unavailable:
                return Namespace()
        return Namespace() if known is None else Namespace(known.epoch, known.ttl_s)

    async def configure(self, namespace: str, ttl_s: float | None) -> None:
        """Raises `faults.Unavailable` when that cannot be made sure of."""
        name = _name(namespace)

        def commands(pipeline: Any) -> None:
            if ttl_s is None:
                pipeline.hdel(name, "ttl_s")
            else:
                pipeline.hset(name, "ttl_s", repr(ttl_s))
            pipeline.hmget(name, _FIELDS)

        self._learn(namespace, (await self._server.send(commands, atomic=True))[-1])

    async def _ask_under(self, namespace: str, known: Known | None, commands: Commands) -> tuple[Known | None, list[Any]]:
        def queue(pipeline: Any) -> None:
            pipeline.hmget(_name(namespace), _FIELDS)  # before the rows: what is written under this prefix then was not yet out of reach
            if known is not None:
                commands(pipeline, known)

        record, *answers = await self._server.send(queue)
        return self._learn(namespace, record), answers

    async def _begin(self, namespace: str) -> Known:
        """Begins a namespace, unless somebody has."""
        name = _name(namespace)

        def commands(pipeline: Any) -> None:
            pipeline.hsetnx(name, "prefix", secrets.token_bytes(_PREFIX_BYTES))
            pipeline.hsetnx(name, "epoch", _first_epoch())
            pipeline.hmget(name, _FIELDS)

        return self._learn_begun(namespace, await self._server.send(commands, atomic=True))

    def _learn(self, namespace: str, record: Sequence[bytes | None]) -> Known | None:
        prefix, epoch, ttl_s = record
        self._known.pop(namespace, None)
        if prefix is None or epoch is None:
            return None
        if len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
        known = Known(prefix, int(epoch), None if ttl_s is None else float(ttl_s), self._clock())
        self._known[namespace] = known
        return known

    def _learn_begun(self, namespace: str, answers: Sequence[Any]) -> Known:
        known = self._learn(namespace, answers[-1])
        if known is None:
            raise faults.Unavailable("the Valkey server lost a namespace while it was begun")
        return known


def _name(namespace: str) -> str:
    return f"hone:namespace:{namespace}"


def _nothing(pipeline: Any, known: Known) -> None:
    """Only the record is asked for."""


def _first_epoch() -> int:
    return 1 + secrets.randbits(_FIRST_EPOCH_BITS)
