"""One split that this replica routes by: which arm a call gets, and what came of its calls."""

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from services.chassis.faults import InvalidField, NotFound, WrongState
from services.chassis.histogram import Histogram
from services.inference.traffic.agreement import Agreement
from services.inference.traffic.guardrails import Bounds, breach
from services.inference.traffic.routing import Router
from services.inference.traffic.state import Kept, Split
from services.inference.traffic.tallies import Moments, Outcomes, Tally
from services.repository.references import NAME, BadName
from services.repository.store import UnknownModel
from services.repository.traffic import Plan

log = structlog.get_logger("hone.traffic")

MAX_OUTCOMES = 32  # names, of one arm: each is a figure that is kept and told
MAX_OBSERVATIONS = 1_000_000  # of one record
MAX_VALUE = 1e100  # its square is a number still, and so are sums of them
REMEMBERED_KEYS = 1 << 16
_AGREEMENTS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999, 1)
_VARIATIONS = (0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
_DIFFERENCES = (1e-6, 1e-5, 1e-4, 0.001, 0.01, 0.1, 1, 10)
# What a caller did wrong is not the arm's failure, and not one of its calls either.
CALLERS_OWN = (InvalidField, BadName, NotFound, UnknownModel, WrongState)


@dataclass(slots=True)
class CopyHistograms:
    """Of this process's copies, by call; total variation is the mean of the call's rows."""

    agreement: Histogram = field(default_factory=lambda: Histogram(_AGREEMENTS))
    total_variation: Histogram = field(default_factory=lambda: Histogram(_VARIATIONS))
    max_abs_difference: Histogram = field(default_factory=lambda: Histogram(_DIFFERENCES))


@dataclass(frozen=True, slots=True)
class Observation:
    """What came of answers: `count` times the same. `is_rate` for a success or none, 1 or 0, else a value."""

    name: str
    value: float
    is_rate: bool
    count: int = 1

    def check(self) -> None:
        """Raises InvalidField."""
        if not re.fullmatch(NAME, self.name):
            raise InvalidField("name", f"{self.name[:80]!r} must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit")
        if not abs(self.value) <= MAX_VALUE:
            raise InvalidField("value", f"must be a number within {MAX_VALUE:g} of 0, not {self.value}")
        if not 1 <= self.count <= MAX_OBSERVATIONS:
            raise InvalidField("count", f"must be 1 to {MAX_OBSERVATIONS}, not {self.count}")


class LiveSplit:
    """Counts on the event loop; `kept` is what was counted before this process and by others.

    Args:
        draw: a number below 1 by chance, for calls without a sticky key and for which of them are copied.
    """

    def __init__(self, split: Split, plan: Plan, kept: Kept, draw: Callable[[], float] = random.random) -> None:
        self.split = split
        self.plan = plan
        self.mine = kept.mine
        self.others = kept.others
        self.replicas = kept.replicas
        self.changed = False  # since it was last saved
        self.copies = CopyHistograms()
        self.taken_out: dict[str, str] = {}  # arm -> why
        self.draw = draw
        self._router = Router({arm.name: arm.weight for arm in plan.arms}, (split.model, split.channel, plan.experiment), draw)
        self._bounds = Bounds(**plan.guardrails.model_dump())
        self._keys: dict[str, None] = {}
        self.follow(kept.taken_out)

    # Routing

    def choose(self, sticky_key: str) -> str:
        """The arm that answers a call."""
        return self._router.choose(sticky_key)

    def shares(self) -> dict[str, float]:
        """Each arm's share of the calls now."""
        return self._router.shares()

    def follow(self, taken_out: Mapping[str, str]) -> None:
        """Takes out what another replica, or an earlier life of this one, has taken out."""
        for arm in self.plan.arms[1:]:
            if arm.name in taken_out and arm.name not in self.taken_out:
                self._take_out(arm.name, taken_out[arm.name])

    def judge(self) -> None:
        """Takes out every arm that has breached a guardrail by now: its share goes to the control."""
        total = self.total()
        for arm in self.plan.arms[1:]:
            is_compared = self.plan.shadow is not None and self.plan.shadow.version == arm.version
            agreement = total.shadow.agreement if is_compared else Moments()
            reason = breach(self._bounds, total.arm(self.plan.control.name), total.arm(arm.name), agreement)
            if reason and arm.name not in self.taken_out:
                self._take_out(arm.name, reason)

    def _take_out(self, arm: str, reason: str) -> None:
        self.taken_out[arm] = reason
        self._router.take_out(arm)
        log.warning("an arm was taken out; its calls go to the control", split=str(self.split), arm=arm, reason=reason)

    # Counting

    def total(self) -> Tally:
        """Over all replicas."""
        return Tally.sum([self.mine, self.others])

    @contextmanager
    def counted(self, arm: str, deadline: float) -> Iterator[None]:
        """Counts the block as a call of the arm. A caller who went before `deadline` counts as none, one whose time was up as a failure."""
        begun = time.monotonic()
        try:
            yield
        except CALLERS_OWN:
            raise
        except asyncio.CancelledError:
            if time.monotonic() >= deadline:
                self._count(arm, None)
            raise
        except Exception:
            self._count(arm, None)
            raise
        self._count(arm, time.monotonic() - begun)

    def _count(self, arm: str, seconds: float | None) -> None:
        """`seconds` is None for a call that failed."""
        self.changed = True
        tally = self.mine.arm(arm)
        tally.calls += 1
        if seconds is None:
            tally.errors += 1
        else:
            tally.latencies.add(seconds)

    def record(self, arm: str, observation: Observation, key: str = "") -> bool:
        """Counts what came of an arm's answers; False where `key` is among those counted before. Raises InvalidField, NotFound."""
        if all(arm != known.name for known in self.plan.arms):
            raise NotFound(f"variant: {arm[:80]!r} is not among {', '.join(known.name for known in self.plan.arms)}")
        observation.check()
        known = self.mine.arm(arm).outcomes
        if observation.name not in known and len(known) >= MAX_OUTCOMES:
            raise InvalidField("name", f"{observation.name!r} would be one more than the {MAX_OUTCOMES} names that an arm may have")
        if self._kind(observation.name, observation.is_rate) is not observation.is_rate:
            raise InvalidField("observation", f"{observation.name!r} is recorded as {'values' if observation.is_rate else 'successes'}")
        if self._is_known(key):
            return False
        self.changed = True
        outcomes = known.setdefault(observation.name, Outcomes(observation.is_rate))
        outcomes.moments.add(observation.value, observation.count)
        return True

    def _kind(self, name: str, default: bool) -> bool:
        """Whether the name is of a rate, by what any arm on any replica was told."""
        arms = [*self.mine.arms.values(), *self.others.arms.values()]
        return next((arm.outcomes[name].is_rate for arm in arms if name in arm.outcomes), default)

    def _is_known(self, key: str) -> bool:
        """Remembers a key, and forgets the oldest for it."""
        if not key or key in self._keys:
            return bool(key)
        self._keys[key] = None
        if len(self._keys) > REMEMBERED_KEYS:
            del self._keys[next(iter(self._keys))]
        return False

    def count_copy(self, agreement: Agreement) -> None:
        """Counts a call that the shadow has answered too."""
        self.changed = True
        shadow = self.mine.shadow
        shadow.agreement.add(float(agreement.rows.mean()))
        shadow.rows += len(agreement.rows)
        shadow.flipped_rows += agreement.flipped_rows
        shadow.max_abs_difference = max(shadow.max_abs_difference, agreement.max_abs_difference)
        for variation in agreement.total_variation.tolist():
            shadow.total_variation.add(variation)
        self.copies.agreement.observe(float(agreement.rows.mean()))
        self.copies.max_abs_difference.observe(agreement.max_abs_difference)
        if len(agreement.total_variation):
            self.copies.total_variation.observe(float(agreement.total_variation.mean()))

    def count_uncopied(self, *, failed: bool) -> None:
        """Counts a copy that the shadow could not answer, or that was dropped since the service was busy."""
        self.changed = True
        self.mine.shadow.failed += failed
        self.mine.shadow.dropped += not failed
