"""Any order of look-ups, stores, releases, clears and waits: leases are exclusive and end, and no value is out of date."""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from services.cache.leases import HELD, LocalLeases
from services.cache.memory import MemoryStore
from services.cache.single_flight import Limits, Outcome, SingleFlight
from services.cache.store import Entry

NAMESPACES = st.sampled_from(["n", "m"])
KEYS = st.sampled_from([b"a", b"b", b"c"])
LEASES_S = st.sampled_from([5.25, 40.25])  # no sum of waits, so that none ends at the very moment of a look
TTL_S = 1_000.25


class FlightMachine(RuleBasedStateMachine):
    """Drives leases over a store beside dicts of what is kept and of who may compute what."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0
        self.store = MemoryStore(1 << 30, lambda: self.now_s)
        leases = LocalLeases(lambda: self.now_s, 1_000)
        self.flights = SingleFlight(self.store, self.store, leases, Limits(answer_bytes=1 << 20, slice=2, max_key_bytes=8))
        self.kept: dict[tuple[str, bytes], tuple[bytes, float]] = {}
        self.held: dict[tuple[str, bytes], tuple[int, float]] = {}
        self.given: list[tuple[str, bytes, int]] = []
        self.values = 0
        self.runner = asyncio.Runner()

    def live(self, namespace: str, key: bytes) -> bytes | None:
        value, end_s = self.kept.get((namespace, key), (None, 0.0))
        return value if end_s > self.now_s else None

    def holder(self, namespace: str, key: bytes) -> int:
        token, end_s = self.held.get((namespace, key), (0, 0.0))
        return token if end_s > self.now_s else 0

    def fresh(self) -> bytes:
        self.values += 1
        return b"%d" % self.values

    @rule(namespace=NAMESPACES, keys=st.lists(KEYS, max_size=5), lease_s=LEASES_S)
    def get_or_lease(self, namespace: str, keys: list[bytes], lease_s: float) -> None:
        before = {key: self.holder(namespace, key) for key in keys}
        found = self.runner.run(self.flights.get_or_lease(namespace, keys, lease_s, 0))
        assert found.values == [self.live(namespace, key) for key in keys]
        assert set(found.leases) == {key for key in keys if self.live(namespace, key) is None}
        for key, lease in found.leases.items():
            assert (lease == HELD) == (before[key] > 0)
            if lease != HELD:
                self.held[namespace, key] = (lease, self.now_s + lease_s)
                self.given.append((namespace, key, lease))

    @rule(namespace=NAMESPACES, key=KEYS)
    def put(self, namespace: str, key: bytes) -> None:
        value = self.fresh()
        assert self.runner.run(self.flights.put(namespace, [Entry(key, value, TTL_S)], {})) == [Outcome.STORED]
        self.kept[namespace, key] = (value, self.now_s + TTL_S)

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def put_with_a_lease(self, data: st.DataObject) -> None:
        namespace, key, token = data.draw(st.sampled_from(self.given))
        value = self.fresh()
        (outcome,) = self.runner.run(self.flights.put(namespace, [Entry(key, value, TTL_S)], {key: token}))
        assert outcome == (Outcome.STORED if self.holder(namespace, key) == token else Outcome.LEASE_LOST)
        if outcome is Outcome.STORED:
            self.kept[namespace, key] = (value, self.now_s + TTL_S)
            del self.held[namespace, key]

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        namespace, key, token = data.draw(st.sampled_from(self.given))
        self.runner.run(self.flights.release(namespace, {key: token}))
        if self.holder(namespace, key) == token:
            del self.held[namespace, key]

    @rule(namespace=NAMESPACES, keys=st.lists(KEYS, max_size=2))
    def delete(self, namespace: str, keys: list[bytes]) -> None:
        self.runner.run(self.flights.delete(namespace, keys))
        for key in keys:
            self.kept.pop((namespace, key), None)
            self.held.pop((namespace, key), None)

    @rule(namespace=NAMESPACES)
    def clear(self, namespace: str) -> None:
        self.runner.run(self.store.clear(namespace))
        self.kept = {name: value for name, value in self.kept.items() if name[0] != namespace}
        self.held = {name: lease for name, lease in self.held.items() if name[0] != namespace}

    @rule(seconds=st.sampled_from([2.0, 30.0, 900.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    def teardown(self) -> None:
        self.runner.close()


TestFlightMachine = FlightMachine.TestCase
TestFlightMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
