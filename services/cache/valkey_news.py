"""What other replicas change, heard of from the Valkey server that they share."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from services.cache.invalidations import Change, Changed, Cleared, Invalidations
from services.cache.valkey_server import FAILURES, ValkeyServer, in_words

log = structlog.get_logger("hone.cache")

CHANNEL = "hone:changes"  # of the whole server: who shares it under another number hears too much, which is harmless
PROOF_S = 1.0  # of silence, after which a sign of life is asked for; none for as long again, and the connection is given up
PAUSE_S = 1.0

_CLEARED, _CHANGED = b"x", b"k"
_LENGTH = struct.Struct(">I")


@asynccontextmanager
async def hearing(
    server: ValkeyServer,
    invalidations: Invalidations,
    *,
    proof_s: float = PROOF_S,
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> AsyncIterator[None]:
    """Passes on what is published, for the length of the block. While nothing can be heard nobody can watch: silence would look like peace.

    This replica's own changes are told once more: one that was told as failed, the server having been too slow, may come late.
    """
    invalidations.interrupt()
    tried = asyncio.Event()
    listening = asyncio.create_task(_listen_on(server, invalidations, proof_s, pause, tried))
    try:
        await tried.wait()
        yield
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _listen_on(
    server: ValkeyServer, invalidations: Invalidations, proof_s: float, pause: Callable[[float], Awaitable[object]], tried: asyncio.Event
) -> None:
    while True:
        try:
            await _listen(server, invalidations, proof_s, tried)
        except (*FAILURES, ValueError) as error:  # the last of a message that is none of ours
            log.warning("changes by other replicas cannot be heard; watching ends", reason=in_words(error))
        finally:
            invalidations.interrupt()
            tried.set()
        await pause(PAUSE_S)


async def _listen(server: ValkeyServer, invalidations: Invalidations, proof_s: float, tried: asyncio.Event) -> None:
    """Until the connection fails, which it does by an exception."""
    async with server.subscription() as subscription:
        await subscription.subscribe(CHANNEL)
        proven = True
        while True:
            told = await subscription.get_message(timeout=proof_s)
            if told is None and not proven:
                raise TimeoutError("no sign of life")
            if told is None:
                await subscription.ping()
            elif told["type"] == "subscribe":
                invalidations.resume()
                tried.set()
            elif told["type"] == "message":
                invalidations.tell(decode(told["data"]))
            proven = told is not None


def encode(change: Change) -> bytes:
    """A change as it is published: its kind, the namespace and a NUL, and each key after its length."""
    name = change.namespace.encode() + b"\0"
    if isinstance(change, Cleared):
        return _CLEARED + name
    return _CHANGED + name + b"".join(_LENGTH.pack(len(key)) + key for key in change.keys)


def decode(message: bytes) -> Change:
    """Raises ValueError for what `encode` has not made."""
    name, end, rest = message[1:].partition(b"\0")
    kind = message[:1]
    if not end or kind not in (_CLEARED, _CHANGED) or (kind == _CLEARED and rest):
        raise ValueError("a message that is none of ours")
    return Cleared(name.decode()) if kind == _CLEARED else Changed(name.decode(), tuple(_keys(rest)))


def _keys(rest: bytes) -> list[bytes]:
    keys = []
    while rest:
        if len(rest) < _LENGTH.size or len(rest) < _LENGTH.size + _LENGTH.unpack_from(rest)[0]:
            raise ValueError("a message that was cut")
        end = _LENGTH.size + _LENGTH.unpack_from(rest)[0]
        keys.append(rest[_LENGTH.size : end])
        rest = rest[end:]
    return keys
