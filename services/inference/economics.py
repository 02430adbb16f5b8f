"""Whether looking answers up costs less than it saves: a pure decision, for one version and one layer of remembered answers.

With the layer a row costs `lookup + (1 - hit) * compute`, without it `compute`: looking up pays while `hit * compute > lookup`.
All are seconds that a caller waits, per row of its call. The wait in the queue is no part of `compute`: it grows with the load,
which a cache lowers, so that counting it would switch the cache off when it works and on when it is off.
"""

from dataclasses import dataclass

WINDOW_ROWS = 1000.0  # about so many rows count in a mean
LEAST_ROWS, LEAST_PROBED = 200.0, 50.0  # rows looked up before lookups are judged, and before their absence is
MARGIN = 1.25  # by so much the other state must be better, or rows that cost about the same would switch for ever
PATIENCE_S = 30.0  # and for so long: a cache that was just filled knows nothing yet
PROBED = 2  # of 256: the share of keys that are looked up and stored while lookups are off


@dataclass(slots=True)
class _Mean:
    """Over rows, the last ones counting most."""

    value: float = 0.0
    rows: float = 0.0

    def add(self, value: float, rows: int) -> None:
        self.rows = min(WINDOW_ROWS, self.rows + rows)
        self.value += (value - self.value) * min(1.0, rows / self.rows)


class Economics:
    """Starts with lookups on. `now` is seconds on one clock, keys are digests: their bytes are evenly distributed."""

    def __init__(self) -> None:
        self.on = True
        self.reason = ""  # why lookups are off
        self._lookup_s = _Mean()
        self._hits = _Mean()
        self._compute_s = _Mean()
        self._against_since: float | None = None

    def wants(self, key: bytes) -> bool:
        """Whether this key is looked up, and its answer stored.

        While lookups are off that is a share of the keys, always the same: of those every answer is remembered, so they are found as
        often as all would be. Every hundredth call instead would look for what nobody stored (SHARDS, Waldspurger et al., FAST 2015).
        """
        return self.on or key[0] < PROBED

    def looked_up(self, rows: int, hits: int, seconds: float, now: float) -> bool:
        """Takes one lookup of `rows` keys into account, which took `seconds` in all. Whether it switched lookups on or off."""
        self._lookup_s.add(seconds / rows, rows)
        self._hits.add(hits / rows, rows)
        return self._judge(now)

    def computed(self, rows: int, seconds: float) -> None:
        """Takes a call into account whose `rows` computed rows took `seconds` together."""
        self._compute_s.add(seconds / rows, rows)

    @property
    def lookup_s(self) -> float:
        """Mean seconds of a lookup, per row."""
        return self._lookup_s.value

    @property
    def saved_s(self) -> float:
        """Mean seconds of computing that a lookup saves, per row."""
        return self._hits.value * self._compute_s.value

    def _judge(self, now: float) -> bool:
        worse, better = (self.lookup_s, self.saved_s) if self.on else (self.saved_s, self.lookup_s)
        if self._hits.rows < (LEAST_ROWS if self.on else LEAST_PROBED) or not self._compute_s.rows or worse <= MARGIN * better:
            self._against_since = None
            return False
        if self._against_since is None:
            self._against_since = now
        if now - self._against_since < PATIENCE_S:
            return False
        self._switch()
        return True

    def _switch(self) -> None:
        self.on = not self.on
        self.reason = "" if self.on else self._explained()
        # What was seen of hits and lookups so far was seen in the other state.
        self._lookup_s, self._hits, self._against_since = _Mean(), _Mean(), None

    def _explained(self) -> str:
        lookup, compute = (f"{seconds * 1e6:.0f} µs per row" for seconds in (self.lookup_s, self._compute_s.value))
        return f"a lookup takes {lookup} and knows {self._hits.value:.1%} of them, computing takes {compute}"
