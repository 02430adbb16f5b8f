"""What a call asks and what it is answered, whatever door it came through."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.backends import Array
from services.inference.engine import Engine
from services.inference.layout import Values
from services.inference.rows import IDS
from services.inference.served import ServedVersion
from services.inference.traffic.splits import Route


@dataclass(frozen=True, slots=True)
class Options:
    """`deadline` is on the monotonic clock. Calls of equal `sticky_key` get the same variant of a model whose traffic is split."""

    truncate: bool = False
    bypass_cache: bool = False
    priority: int = 0
    deadline: float = math.inf
    sticky_key: str = ""


@dataclass(frozen=True, slots=True)
class Served:
    """Where an answer came from and where its time went; see the contract's message of the same name.

    `variant` is the arm where the channel's calls are split, by the split's `revision`, else the channel.
    """

    model: str
    version: int
    variant: str
    cached_rows: int
    tokens: int
    batch_rows: int
    queue_ns: int
    tokenization_ns: int
    compute_ns: int
    channel: str = ""
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """Outputs with the rows as first dimension, in the order asked."""

    outputs: Mapping[str, Array]
    served: Served
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A request's rows on their way through a version, which is lent for as long."""

    served: ServedVersion
    engine: Engine
    route: Route
    channel: str  # that the reference named, as the repository has it
    rows: Sequence[Values]
    outputs: tuple[str, ...]
    options: Options
    longest: int = 0  # of the request's rows in tokens, which answers per token are padded to
    tokenization_ns: int = 0

    @property
    def variant(self) -> str:
        return self.route.arm or self.channel

    @property
    def tokens(self) -> int:
        """Real tokens; 0 of a model that takes none."""
        return sum(len(row[IDS]) for row in self.rows) if self.served.signature.task.takes_text else 0
