"""What is asked of a served model: which rows, how many at once, how often, and how much of it again."""

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Annotated, Self

from pydantic import Field, model_validator

from services.repository.manifest import Frozen

_REPEATED_AMONG = 1000  # earlier requests, the last ones: what was asked long ago, a cache may have put out

Count = Annotated[int, Field(ge=1)]


class Traffic(Frozen):
    """As recorded, or as stated. Without texts and lengths the rows are those of a job's evaluation examples.

    Closed loop unless a rate or gaps are told: each of `callers` asks as soon as it is answered, which shows capacity. Open loop:
    requests come when they come, answered or not, which shows the latency that users see.
    """

    texts: tuple[str, ...] = Field((), max_length=100_000, description="recorded texts")
    token_lengths: tuple[Count, ...] = Field((), max_length=100_000, description="recorded tokens of a row, where texts are not to be kept")
    request_rows: tuple[Count, ...] = Field((1,), min_length=1, max_length=100_000, description="recorded rows of a request")
    callers: int = Field(16, ge=1, le=1024, description="requests at once in a closed loop")
    rate: float = Field(0.0, ge=0, le=1e6, description="requests per second; 0 as fast as they are answered, or as the gaps say")
    gaps_s: tuple[Annotated[float, Field(ge=0, le=3600)], ...] = Field(
        (), max_length=100_000, description="recorded seconds between requests, played in order; scaled where a rate is told too"
    )
    gamma_shape: float = Field(
        1.0, gt=0, le=1000, description="of the gaps at a stated rate: 1 is Poisson, below 1 bursts, above is steadier"
    )
    repeat_share: float = Field(0.0, ge=0, lt=1, description="share of requests that repeat an earlier one, which a cache could answer")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.texts and self.token_lengths:
            raise ValueError("texts and token_lengths: both tell the rows' lengths; leave one out")
        for index, text in enumerate(self.texts):
            if not text.strip():
                raise ValueError(f"texts[{index}]: is empty")
        if self.gaps_s and not sum(self.gaps_s):
            raise ValueError("gaps_s: all are 0, which is no rate")
        return self

    @property
    def mean_request_rows(self) -> float:
        return sum(self.request_rows) / len(self.request_rows)

    @property
    def is_open_loop(self) -> bool:
        return bool(self.rate or self.gaps_s)

    def closed_loop(self, callers: int = 0) -> Self:
        """The same requests, as fast as they are answered to so many callers; 0 leaves the callers as they are."""
        return self.model_copy(update={"rate": 0.0, "gaps_s": (), "callers": callers or self.callers})


@dataclass(frozen=True, slots=True)
class Row:
    """The variant-th version of a source; 0 is the source as it is."""

    source: int
    variant: int


@dataclass(frozen=True, slots=True)
class Request:
    """To be sent so long after the one before; at once in a closed loop."""

    gap_s: float
    rows: tuple[Row, ...]


class Uses:
    """Which variants were given out, to all versions together: those of equal files share what is remembered."""

    def __init__(self) -> None:
        self._variants: Counter[int] = Counter()

    def fresh(self, source: int) -> Row:
        variant = self._variants[source]
        self._variants[source] += 1
        return Row(source, variant)


def requests(traffic: Traffic, sources: int, uses: Uses, seed: int) -> Iterator[Request]:
    """Endless; `sources` is how many rows there are to choose from. The same seed asks for the same sources in the same order."""
    draw = random.Random(seed)  # noqa: S311  a sample to play
    next_gap = _gaps(traffic, draw)
    earlier: deque[tuple[Row, ...]] = deque(maxlen=_REPEATED_AMONG)
    while True:
        gap_s = next_gap()
        if earlier and draw.random() < traffic.repeat_share:
            yield Request(gap_s, draw.choice(earlier))
            continue
        rows = tuple(uses.fresh(draw.randrange(sources)) for _ in range(draw.choice(traffic.request_rows)))
        earlier.append(rows)
        yield Request(gap_s, rows)


def _gaps(traffic: Traffic, draw: random.Random) -> Callable[[], float]:
    if traffic.gaps_s:
        scale = len(traffic.gaps_s) / (traffic.rate * sum(traffic.gaps_s)) if traffic.rate else 1.0
        recorded = cycle(traffic.gaps_s)
        return lambda: scale * next(recorded)
    if traffic.rate:
        mean_s, shape = 1 / traffic.rate, traffic.gamma_shape
        return lambda: draw.gammavariate(shape, mean_s / shape)
    return lambda: 0.0
