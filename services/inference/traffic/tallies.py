"""What a split's arms did, as numbers that add up: over calls, over replicas, over restarts."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

LEAST_S = 1e-6
GROWTH = 2 ** (1 / 16)  # of one latency bucket to the next: percentiles are right within 5 %


@dataclass(slots=True)
class Moments:
    """Mean and spread of numbers, by Welford's sums, which neither cancel nor overflow as sums of squares do."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances to the mean

    @property
    def variance(self) -> float:
        """Of the sample; 0 below two numbers."""
        return self.squares / (self.count - 1) if self.count > 1 else 0.0

    @property
    def total(self) -> float:
        return self.mean * self.count

    def add(self, value: float, count: int = 1) -> None:
        """Takes `count` numbers equal to `value`."""
        self.merge(Moments(count, value))

    def merge(self, other: "Moments") -> None:
        """Takes what the other has taken (Chan, Golub, LeVeque 1979)."""
        count = self.count + other.count
        if not count:
            return
        apart = other.mean - self.mean
        self.squares += other.squares + apart * apart * self.count * (other.count / count)
        self.mean += apart * (other.count / count)
        self.count = count


@dataclass(slots=True)
class Latencies:
    """A histogram of seconds with buckets of equal ratio."""

    counts: dict[int, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    def add(self, seconds: float) -> None:
        bucket = math.floor(math.log(max(seconds, LEAST_S) / LEAST_S, GROWTH))
        self.counts[bucket] = self.counts.get(bucket, 0) + 1

    def merge(self, other: "Latencies") -> None:
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the calls was answered, the middle of its bucket; 0 before the first."""
        left = share * self.count
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 0:
                return _seconds(bucket + 0.5)
        return 0.0

    def ends(self) -> list[tuple[float, int]]:
        """Upper end in seconds of each bucket with a call, ascending, and how many calls lie above it."""
        above, found = self.count, []
        for bucket in sorted(self.counts):
            above -= self.counts[bucket]
            found.append((_seconds(bucket + 1), above))
        return found

    def above(self, seconds: float) -> int:
        """Calls in buckets that lie above `seconds` as a whole."""
        return sum(count for bucket, count in self.counts.items() if _seconds(bucket) >= seconds)


def _seconds(bucket: float) -> float:
    """Where a bucket begins."""
    return LEAST_S * math.pow(GROWTH, bucket)


@dataclass(slots=True)
class Outcomes:
    """What was recorded under one name: a rate of successes, or values."""

    is_rate: bool
    moments: Moments = field(default_factory=Moments)


@dataclass(slots=True)
class ArmTally:
    """Calls that ended, of them those that failed, how long the others took, and what came of them."""

    calls: int = 0
    errors: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    outcomes: dict[str, Outcomes] = field(default_factory=dict)

    def merge(self, other: "ArmTally") -> None:
        self.calls += other.calls
        self.errors += other.errors
        self.latencies.merge(other.latencies)
        for name, outcomes in other.outcomes.items():
            mine = self.outcomes.setdefault(name, Outcomes(outcomes.is_rate))
            if mine.is_rate == outcomes.is_rate:  # else two replicas were told different kinds at once: the first kind counts
                mine.moments.merge(outcomes.moments)


@dataclass(slots=True)
class ShadowTally:
    """Copies of calls; `agreement` is over calls, `total_variation` over rows."""

    dropped: int = 0
    failed: int = 0
    rows: int = 0
    flipped_rows: int = 0
    max_abs_difference: float = 0.0
    agreement: Moments = field(default_factory=Moments)
    total_variation: Moments = field(default_factory=Moments)

    def merge(self, other: "ShadowTally") -> None:
        self.dropped += other.dropped
        self.failed += other.failed
        self.rows += other.rows
        self.flipped_rows += other.flipped_rows
        self.max_abs_difference = max(self.max_abs_difference, other.max_abs_difference)
        self.agreement.merge(other.agreement)
        self.total_variation.merge(other.total_variation)


@dataclass(slots=True)
class Tally:
    """One revision of a split."""

    arms: dict[str, ArmTally] = field(default_factory=dict)
    shadow: ShadowTally = field(default_factory=ShadowTally)

    def arm(self, name: str) -> ArmTally:
        return self.arms.setdefault(name, ArmTally())

    @staticmethod
    def sum(tallies: Iterable["Tally"]) -> "Tally":
        """A new tally with all of them; those given stay as they are."""
        made = Tally()
        for tally in tallies:
            for name, arm in tally.arms.items():
                made.arm(name).merge(arm)
            made.shadow.merge(tally.shadow)
        return made
