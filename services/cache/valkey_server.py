"""A Valkey or Redis server: pipelines with a time limit, and a pause after one that failed."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, OutOfMemoryError, RedisError, ResponseError

from services.chassis import faults

log = structlog.get_logger("hone.cache")

SCHEMES = {"valkey": "redis", "valkeys": "rediss", "redis": "redis", "rediss": "rediss", "unix": "unix"}  # ours to the client's
MAX_CONNECTIONS = 32  # a call has one to itself; more calls wait their turn, within their time limit
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0

FAILURES = (RedisError, OSError)  # what a server that is not there, or not well, is told by

Commands = Callable[[Any], object]  # queues commands on the pipeline that it is given


@asynccontextmanager
async def valkey_server(url: str, timeout_s: float) -> AsyncIterator["ValkeyServer"]:
    """A server for the length of the block. One that is down is no error: it may come.

    Raises:
        ValueError: `url` is none of valkey://, valkeys:// (TLS), redis://, rediss:// and unix://.
        OSError: the server refuses us, by the password or the number of the database.
    """
    pool = _pool(url, timeout_s)
    server = ValkeyServer(Redis(connection_pool=pool), timeout_s)
    try:
        await server.greet()
        yield server
    finally:
        await pool.disconnect()


class ValkeyServer:
    """Sends pipelines. A server that is down or hung is left alone for a while, longer each time, so that it costs callers nothing.

    At the end of a pause one call asks; the others go on without the server until that one has its answer.
    """

    def __init__(self, client: Redis, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._clock = clock
        self._failing = False
        self._paused_until_s = 0.0
        self._pause_s = SHORTEST_PAUSE_S

    async def greet(self) -> None:
        """Asks for a sign of life. Raises OSError where the server answers and will have none of us."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.ping()
        except (AuthenticationError, ResponseError) as error:
            raise OSError(f"the Valkey server refuses: {error}") from error
        except FAILURES as error:
            log.warning("the Valkey server does not answer yet", reason=in_words(error))

    async def send(self, commands: Commands, *, atomic: bool = False) -> list[Any]:
        """The answers to what `commands` queues, in one round trip; `atomic`: as one MULTI.

        A command that a full server refuses has its OutOfMemoryError among the answers.

        Raises:
            faults.Unavailable: the server does not answer, or did not a moment ago, or refused all of it.
        """
        first_again = self._enter()
        try:
            answers = await self._send(commands, atomic)
        except OutOfMemoryError as error:  # of one MULTI; the server is well
            raise faults.Unavailable("the Valkey server is full and evicts nothing") from error
        except FAILURES as error:
            self._failed(error, first_again)
            raise faults.Unavailable("the Valkey server does not answer", self._pause_s) from error
        self._failing, self._paused_until_s, self._pause_s = False, 0.0, SHORTEST_PAUSE_S
        return answers

    def subscription(self) -> Any:
        """A connection for messages, which is not subject to pauses; a context manager. What fails on it raises one of `FAILURES`."""
        return self._client.pubsub()

    async def _send(self, commands: Commands, atomic: bool) -> list[Any]:
        async with asyncio.timeout(self._timeout_s):
            async with self._client.pipeline(transaction=atomic) as pipeline:
                commands(pipeline)
                answers: list[Any] = await pipeline.execute(raise_on_error=atomic)
        refused = (answer for answer in answers if isinstance(answer, Exception) and not isinstance(answer, OutOfMemoryError))
        if (error := next(refused, None)) is not None:  # it loads its data, say, or may not be written to
            raise error
        return answers

    def _enter(self) -> bool:
        """Whether this call is the first to ask again after a pause."""
        now = self._clock()
        if now < self._paused_until_s:
            raise faults.Unavailable("the Valkey server did not answer a moment ago", self._paused_until_s - now)
        if self._failing:
            self._paused_until_s = now + self._timeout_s
        return self._failing

    def _failed(self, error: Exception, first_again: bool) -> None:
        if self._failing and not first_again:  # of several under way at once the first has told
            return
        self._failing = True
        self._paused_until_s = self._clock() + self._pause_s
        log.warning("the Valkey server does not answer; going on without it", reason=in_words(error), pause_s=self._pause_s)
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)


def in_words(error: Exception) -> str:
    """For the log: the client's own `repr` leaves the text out, `str` of a time-out is empty."""
    return f"{type(error).__name__}: {error}"


def _pool(url: str, timeout_s: float) -> BlockingConnectionPool:
    scheme, separator, rest = url.partition("://")
    try:
        return BlockingConnectionPool.from_url(
            f"{SCHEMES[scheme]}{separator}{rest}",
            max_connections=MAX_CONNECTIONS,
            timeout=None,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),  # a cache is asked once
            protocol=2,  # no greeting round trip; the newer protocol's types are of no use to bytes
            driver_info=None,
        )
    except (KeyError, ValueError):  # whose text may carry a part of the password
        raise ValueError("not the URL of a Valkey server, as in valkey://user:password@host:6379/0") from None
