"""The cache service as one job asks it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog

log = structlog.get_logger("hone.jobs")

TIMEOUT_S = 5.0  # of a call; after the first failure there is none any more


class Cache(Protocol):
    """The part of the cache client that is used here."""

    def get(self, namespace: str, keys: Sequence[bytes], *, timeout: float) -> list[bytes | None]: ...

    def put(self, namespace: str, entries: Mapping[bytes, bytes], *, ttl: float, timeout: float) -> object: ...


class Link:
    """Without a cache, or once it has failed, there is none: an outage costs a job one time-out at most."""

    def __init__(self, cache: Cache | None, ttl_s: float = 86_400.0) -> None:
        self._cache = cache
        self._ttl_s = ttl_s

    @property
    def works(self) -> bool:
        return self._cache is not None

    def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, None where it is not known."""
        if self._cache is not None:
            try:
                return self._cache.get(namespace, keys, timeout=TIMEOUT_S)
            except Exception as error:  # whatever an outage looks like
                self._give_up(error)
        return [None] * len(keys)

    def put(self, namespace: str, entries: Mapping[bytes, bytes]) -> None:
        if self._cache is not None:
            try:
                self._cache.put(namespace, entries, ttl=self._ttl_s, timeout=TIMEOUT_S)
            except Exception as error:  # as above
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._cache = None
        log.warning("the cache does not answer; the job goes on without it", reason=repr(error)[:200])
