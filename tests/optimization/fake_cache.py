"""The cache client as the optimization service uses it, on a dict."""

from collections.abc import Mapping, Sequence

from services.optimization.remembered import Remembered
from services.optimization.remembered.link import Link


class FakeCache:
    """`fault` is raised instead, from the `fault_after`-th call on; full, it forgets what it is given."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, bytes], bytes] = {}
        self.calls = 0
        self.fault_after = 1 << 30
        self.fault: Exception = ConnectionError("no cache")
        self.is_full = False

    def get(self, namespace: str, keys: Sequence[bytes], *, timeout: float) -> list[bytes | None]:
        self._act()
        return [self.kept.get((namespace, key)) for key in keys]

    def put(self, namespace: str, entries: Mapping[bytes, bytes], *, ttl: float, timeout: float) -> None:
        self._act()
        if not self.is_full:
            self.kept.update({(namespace, key): value for key, value in entries.items()})

    def _act(self) -> None:
        self.calls += 1
        if self.calls > self.fault_after:
            raise self.fault


def remembering(cache: FakeCache, namespace: str = "n") -> Remembered:
    """As a job that begins now has it."""
    return Remembered(Link(cache), namespace)
