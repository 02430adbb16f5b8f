"""The splits that the repository wants and those that this replica routes by: a split is switched to when all of its versions serve."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import structlog

from services.chassis.faults import NotFound
from services.inference.traffic.live import LiveSplit
from services.inference.traffic.state import Kept, Split, StateFolder
from services.inference.traffic.tallies import Tally
from services.repository.references import parse
from services.repository.traffic import Plan, Traffic

log = structlog.get_logger("hone.traffic")

ChannelKey = tuple[str, str]  # model, channel
VersionKey = tuple[str, int]  # model, version


@dataclass(frozen=True, slots=True)
class Route:
    """Where a call goes: `reference` as it was given, or an arm's NAME@VERSION."""

    reference: str
    live: LiveSplit | None = None
    arm: str = ""

    @property
    def channel(self) -> str:
        """Empty where the calls are not split."""
        return self.live.split.channel if self.live is not None else ""

    @property
    def revision(self) -> int:
        return self.live.split.revision if self.live is not None else 0

    def counted(self, deadline: float) -> AbstractContextManager[None]:
        """Counts the block as a call of the arm; `deadline` is on the monotonic clock."""
        return self.live.counted(self.arm, deadline) if self.live is not None else nullcontext()


@dataclass(frozen=True, slots=True)
class Found:
    """A split as the repository has it, with what was counted of it before."""

    split: Split
    plan: Plan
    kept: Kept


@dataclass(frozen=True, slots=True)
class Pending:
    """A revision that is not routed by yet, and why."""

    revision: int
    reason: str


class Splits:
    """Made and used on one event loop, but for `read`."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._wanted: dict[ChannelKey, Found] = {}
        self._live: dict[ChannelKey, LiveSplit] = {}
        self._pending: dict[ChannelKey, Pending] = {}
        self._ended: list[LiveSplit] = []

    # Routing

    def route(self, reference: str, sticky_key: str) -> Route:
        """Raises BadName."""
        if not self._live:
            return Route(reference)
        wanted = parse(reference)
        live = self._live.get((wanted.name, wanted.channel))
        if live is None:
            return Route(reference)
        arm = live.choose(sticky_key)
        return Route(f"{wanted.name}@{live.plan.arm(arm).version}", live, arm)

    def live(self) -> list[LiveSplit]:
        return list(self._live.values())

    def get(self, model: str, channel: str) -> LiveSplit:
        """Raises NotFound."""
        found = self._live.get((model, channel))
        if found is None:
            waits = self._pending.get((model, channel))
            why = f" yet: {waits.reason}" if waits is not None else ""
            raise NotFound(f"the calls of {model}:{channel} are not split on this replica{why}")
        return found

    def pending(self, model: str, channel: str) -> Pending | None:
        return self._pending.get((model, channel))

    def take_ended(self) -> list[LiveSplit]:
        """Splits that ended since this was last asked; their last counts are to be saved."""
        ended, self._ended = self._ended, []
        return ended

    # Following the repository

    def read(self, name: str, traffic: Mapping[str, Traffic]) -> dict[str, Found]:
        """A model's splits by channel, with what the state folder keeps of them. Reads the disk: in a thread."""
        return {
            channel: self._found(Split(name, channel, found.revision), found.plan)
            for channel, found in traffic.items()
            if found.plan is not None
        }

    def _found(self, split: Split, plan: Plan) -> Found:
        try:
            return Found(split, plan, self._state.load(split))
        except OSError as error:  # calls are split all the same
            log.error("what was counted before cannot be read", split=str(split), error=str(error))
            return Found(split, plan, Kept(Tally(), Tally(), 0, {}))

    def want(self, name: str, found: Mapping[str, Found]) -> None:
        """Takes over a model's splits as `read` has found them."""
        for key in [key for key in self._wanted if key[0] == name and key[1] not in found]:
            del self._wanted[key]
        self._wanted.update({(name, channel): each for channel, each in found.items()})

    def versions(self) -> set[VersionKey]:
        """Every version that a split uses, or is to use."""
        return {version for _, version in self._uses()}

    def channels_of(self, version: VersionKey) -> list[str]:
        """Channels whose split uses the version, or is to use it."""
        return sorted({channel for channel, used in self._uses() if used == version})

    def coming(self) -> set[VersionKey]:
        """Versions of splits that are not switched to yet."""
        behind = [found for key, found in self._wanted.items() if key not in self._live or self._live[key].split != found.split]
        return {(found.split.model, version) for found in behind for version in found.plan.versions}

    def _uses(self) -> Iterator[tuple[str, VersionKey]]:
        uses = [(live.split, live.plan) for live in self._live.values()] + [(found.split, found.plan) for found in self._wanted.values()]
        return ((split.channel, (split.model, version)) for split, plan in uses for version in plan.versions)

    def switch(self, why_not: Callable[[VersionKey], str]) -> None:
        """Routes by each wanted split whose versions all serve; `why_not` is empty for a version that does."""
        self._pending.clear()
        for key in self._live.keys() - self._wanted.keys():
            self._end(key)
        for key, found in self._wanted.items():
            live = self._live.get(key)
            if live is not None and live.split == found.split:
                continue
            reasons = [reason for version in sorted(found.plan.versions) if (reason := why_not((key[0], version)))]
            if reasons:
                self._pending[key] = Pending(found.split.revision, reasons[0])
            else:
                self._begin(key, found)

    def _begin(self, key: ChannelKey, found: Found) -> None:
        self._end(key)
        self._live[key] = LiveSplit(found.split, found.plan, found.kept)
        shares = {
            arm.name: f"{arm.version} at {share:.4g}" for arm, share in zip(found.plan.arms, self._live[key].shares().values(), strict=True)
        }
        log.info("calls are split", split=str(found.split), arms=shares)

    def _end(self, key: ChannelKey) -> None:
        live = self._live.pop(key, None)
        if live is not None:
            self._ended.append(live)
            log.info("a split has ended", split=str(live.split))
