"""What versions do for users, as the page's caller tells it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LiveArm:
    """One arm of a split of calls. `error_rate` is a share of its calls; of the other figures 0 is not known."""

    arm: str
    version: int
    calls: int
    error_rate: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    rows_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class Live:
    """The arms of one split, and what follows from them in words."""

    arms: tuple[LiveArm, ...] = ()
    remark: str = ""


NOTHING = Live()
