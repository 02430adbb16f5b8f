"""A store on a Valkey server behaves as every other, whichever of two replicas is asked."""

from collections.abc import Iterator
from itertools import count
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import rule

from benchmarks.valkey import running_server
from services.cache.store import Store
from services.cache.valkey import ValkeyStore
from services.cache.valkey_server import valkey_server
from tests.cache.test_store_laws import StoreMachine
from tests.cache.valkey_servers import TIMEOUT_S, needs_server


class ValkeyMachine(StoreMachine):
    slack_s = 20.0  # its clock goes on
    url: ClassVar[str]
    other: Store

    async def open(self) -> Store:
        server = await self.stack.enter_async_context(valkey_server(self.url, TIMEOUT_S))
        await server.send(lambda pipeline: pipeline.flushall())
        store, self.other = (ValkeyStore(server, count(step=60).__next__) for _ in range(2))  # what is remembered is old at once
        for namespace in ("a", "ab", "b"):
            self.epochs[namespace] = (await store.describe(namespace)).epoch
        return store

    @rule()
    def ask_the_other_replica(self) -> None:
        self.store, self.other = self.other, self.store

    def wait(self, seconds: float) -> None:
        """No rule here: the server's clock is its own."""


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    needs_server()
    with running_server() as server:
        ValkeyMachine.url = server.url
        yield


TestValkey = ValkeyMachine.TestCase
TestValkey.settings = settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
