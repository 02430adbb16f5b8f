"""Settings of the cache service that contradict each other."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.cache.settings import CacheSettings


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"default_ttl_s": 100, "max_ttl_s": 10}, "default_ttl_s 100 is longer"),
        ({"max_bytes": 8 << 20, "shards": 16}, "for each of 16 shards"),
        ({"max_bytes": 8 << 20, "shards": 8}, "more than half of a shard's 1048576"),
        ({"store": "memory", "shards": 2}, "the memory store has no shards"),
        ({"store": "memory", "eviction": "least-recently-stored"}, "the memory store evicts"),
        ({"max_message_bytes": 1 << 20}, "does not fit in max_message_bytes"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        CacheSettings(**settings)


def test_settings_that_agree_are_taken() -> None:
    assert CacheSettings(max_bytes=8 << 20, shards=4, compress_bytes=1_000, max_lease_s=5).shards == 4
