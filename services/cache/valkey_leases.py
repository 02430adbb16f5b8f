"""Leases on a Valkey or Redis server, so that of many replicas' callers one computes."""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

from services.cache.leases import HELD, NONE_LEFT
from services.cache.valkey_server import ValkeyServer
from services.chassis import faults

# One EXISTS a look. The server's own news were rejected: a message that is missed costs a waiter all its time, and none is kept for it.
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.002, 0.02

_NO_ANSWER = object()

# Compares and deletes, which is one step of the server's in a script alone. Tells which it deleted.
_END = """
local ended = {}
for place, name in ipairs(KEYS) do
    ended[place] = redis.call('GET', name) == ARGV[place] and redis.call('DEL', name) or 0
end
return ended
"""


class ValkeyLeases:
    """A lease is a key that the server lets expire. A server that does not answer gives none: every caller computes for itself."""

    def __init__(self, server: ValkeyServer, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._clock = clock

    async def take(self, namespace: str, keys: Sequence[bytes], seconds: float) -> list[int]:
        tokens = [1 + secrets.randbelow((1 << 63) - 1) for _ in keys]

        def commands(pipeline: Any) -> None:
            for name, token in zip(_names(namespace, keys), tokens, strict=True):
                pipeline.set(name, token, nx=True, px=max(1, ceil(seconds * 1e3)))

        answers = await self._answers(commands, len(keys), otherwise=_NO_ANSWER)
        return [_taken(token, answer) for token, answer in zip(tokens, answers, strict=True)]

    async def keep(self, namespace: str, held: Mapping[bytes, int]) -> list[bool]:
        """Only tells: a replica that is lost while it stores must block nobody. So of what ends one meanwhile `end` tells."""
        answers = await self._answers(lambda pipeline: [pipeline.get(name) for name in _names(namespace, held)], len(held))
        return [answer == b"%d" % token for token, answer in zip(held.values(), answers, strict=True)]

    async def end(self, namespace: str, held: Mapping[bytes, int]) -> list[bool]:
        """As the protocol has it; where the server does not answer, they end by their time, and nobody knows that they had not before."""
        if not held:
            return []
        answers = await self._answers(lambda pipeline: pipeline.eval(_END, len(held), *_names(namespace, held), *held.values()), 1)
        return [ended == 1 for ended in answers[0] or [0] * len(held)]

    async def revoke(self, namespace: str, keys: Sequence[bytes]) -> None:
        await self._answers(lambda pipeline: pipeline.delete(*_names(namespace, keys)), len(keys))

    async def wait(self, namespace: str, keys: Sequence[bytes], seconds: float) -> None:
        end_s = self._clock() + seconds
        look_s = _FIRST_LOOK_S
        while (keys := await self._leased(namespace, keys)) and (left_s := end_s - self._clock()) > 0:
            await asyncio.sleep(min(look_s, left_s))
            look_s = min(_LONGEST_LOOK_S, 1.5 * look_s)

    async def _leased(self, namespace: str, keys: Sequence[bytes]) -> list[bytes]:
        answers = await self._answers(lambda pipeline: [pipeline.exists(name) for name in _names(namespace, keys)], len(keys), otherwise=0)
        return [key for key, answer in zip(keys, answers, strict=True) if answer]

    async def _answers(self, commands: Callable[[Any], object], count: int, otherwise: object = None) -> list[Any]:
        """`otherwise` for each where nobody answers."""
        try:
            return await self._server.send(commands) if count else []
        except faults.Unavailable:
            return [otherwise] * count


def _taken(token: int, answer: object) -> int:
    if answer is None:
        return HELD
    return token if answer is True else NONE_LEFT  # an outage, or a server that is full


def _names(namespace: str, keys: Sequence[bytes] | Mapping[bytes, int]) -> list[bytes]:
    """No namespace contains a NUL, so that no two pairs share a name."""
    return [b"hone:lease:" + namespace.encode() + b"\0" + key for key in keys]
