"""What both clients say to the cache service, and what they make of its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from hone.cache.v1 import cache_pb2


@dataclass(frozen=True, slots=True)
class Cached:
    """What the cache tells of a key: its value, or who computes it.

    Without a value, `lease` above 0 is the caller's right to compute it, which goes back with `put` or `release`; `leased` says that
    another caller has that right and has not stored the value yet. Neither: no right was to be had, and the caller computes without.
    """

    value: bytes | None = None
    lease: int = 0
    leased: bool = False


@dataclass(frozen=True, slots=True)
class Living:
    """A value and how many seconds it lives on in the cache; `ttl_left` is None of a service that does not tell."""

    value: bytes
    ttl_left: float | None


def get_request(namespace: str, keys: Sequence[bytes], lease: float | None = None, wait: float | None = None) -> cache_pb2.GetRequest:
    """Times in seconds."""
    return cache_pb2.GetRequest(namespace=namespace, keys=keys, lease=_duration(lease), wait=_duration(wait))


def living_request(namespace: str, keys: Sequence[bytes]) -> cache_pb2.GetRequest:
    return cache_pb2.GetRequest(namespace=namespace, keys=keys, tell_ttl_left=True)


def living(response: cache_pb2.GetResponse) -> list[Living | None]:
    return [_living(result) for result in response.results]


def cached_values(response: cache_pb2.GetResponse) -> list[bytes | None]:
    return [_value(result) for result in response.results]


def cached(response: cache_pb2.GetResponse) -> list[Cached]:
    return [Cached(_value(result), result.lease, result.status == cache_pb2.ITEM_STATUS_LEASED) for result in response.results]


def put_request(
    namespace: str, entries: Mapping[bytes, bytes], ttl: float | None, leases: Mapping[bytes, int] | None = None
) -> cache_pb2.PutRequest:
    """`leases` by key; an entry without one is stored whoever computes it."""
    life, held = _duration(ttl), leases or {}
    return cache_pb2.PutRequest(
        namespace=namespace,
        entries=[cache_pb2.Entry(key=key, value=value, ttl=life, lease=held.get(key, 0)) for key, value in entries.items()],
    )


def release_request(namespace: str, leases: Mapping[bytes, int]) -> cache_pb2.ReleaseRequest:
    return cache_pb2.ReleaseRequest(
        namespace=namespace, leases=[cache_pb2.HeldLease(key=key, lease=lease) for key, lease in leases.items()]
    )


def configure_request(namespace: str, ttl: float | None) -> cache_pb2.ConfigureRequest:
    return cache_pb2.ConfigureRequest(namespace=namespace, ttl=_duration(ttl))


def _living(result: cache_pb2.GetResult) -> Living | None:
    if result.status != cache_pb2.ITEM_STATUS_OK:
        return None
    return Living(result.value, result.ttl_left.ToNanoseconds() / 1e9 if result.HasField("ttl_left") else None)


def _value(result: cache_pb2.GetResult) -> bytes | None:
    return result.value if result.status == cache_pb2.ITEM_STATUS_OK else None


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
