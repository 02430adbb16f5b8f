"""Traffic played against a running service, several versions in turns, so that what disturbs the machine disturbs them alike."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import grpc
import uvloop

from services.optimization.advisor.serving.calls_wire import Calls
from services.optimization.advisor.serving.material import Material
from services.optimization.advisor.serving.played import Played, Turn
from services.optimization.advisor.serving.traffic import Request, Traffic, Uses, requests
from services.optimization.advisor.serving.trial import TrialFailed

WARM_S = 0.5  # before a version's first turn
_LEAST_LEAD_S, _LEAD_SHARE = 0.2, 0.2  # before each turn is counted: queues fill, and processors' caches forget the version before
_ATTEMPTS = 4  # at a turn, each twice as long as the one before
CALL_S = 30.0  # a request that takes longer counts as unanswered
_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


def lead_s(turn_s: float) -> float:
    """What a turn takes beside what is counted of it. Latencies that a turn has not room for, its lead included, are not seen."""
    return max(_LEAST_LEAD_S, _LEAD_SHARE * turn_s)


class Service(Protocol):
    """What is played against."""

    @property
    def address(self) -> str: ...

    def cpu_s(self) -> float:
        """That it has used so far."""

    def check(self) -> None:
        """Raises TrialFailed where it has ended."""


@dataclass(frozen=True)
class Subject:
    """A version and what is asked of it."""

    reference: str
    traffic: Traffic


class Player:
    """Plays against one service. Each version's requests go on from turn to turn: begun anew, they would all be remembered."""

    def __init__(self, service: Service, material: Material, calls: Calls, seed: int) -> None:
        self._service, self._material, self._calls, self._seed = service, material, calls, seed
        self._uses = Uses()
        self._streams: dict[Subject, Iterator[Request]] = {}
        self._warm: set[str] = set()  # references

    def play(self, subjects: Sequence[Subject], rounds: int, turn_s: float) -> list[Played]:
        """Each subject's turns, one a round; every other round goes backwards. Blocks. Raises TrialFailed."""
        return uvloop.run(self._play(subjects, rounds, turn_s))

    def seconds_alone(self, subject: Subject) -> float:
        """What one request takes where nothing else is asked; the second one, since a first one warms up. Raises TrialFailed."""
        alone = Subject(subject.reference, subject.traffic.closed_loop(1))
        return uvloop.run(self._alone(alone))

    async def _alone(self, subject: Subject) -> float:
        async with self._channel() as channel:
            window = _Window(subject, self._stream(subject), self._calls, channel, 0.0, float("inf"))
            for _ in range(2):
                await window.ask(time.monotonic())
        self._check(window)
        if len(window.latencies_s) < 2:
            raise TrialFailed(f"{subject.reference} did not answer within {CALL_S:g} s: {window.last_failure}")
        return window.latencies_s[-1]

    async def _play(self, subjects: Sequence[Subject], rounds: int, turn_s: float) -> list[Played]:
        turns: list[list[Turn]] = [[] for _ in subjects]
        order = list(range(len(subjects)))
        async with self._channel() as channel:
            for subject in subjects:
                await self._warm_up(subject, channel)
            for number in range(rounds):
                for index in reversed(order) if number % 2 else order:
                    turns[index].append(await self._turn(subjects[index], channel, turn_s))
        return [Played(tuple(each)) for each in turns]

    async def _warm_up(self, subject: Subject, channel: grpc.aio.Channel) -> None:
        """A version's first calls are slower: its engine has yet to get memory, and the service to learn how long its batches take."""
        if subject.reference not in self._warm:
            await self._turn(subject, channel, WARM_S)
            self._warm.add(subject.reference)

    async def _turn(self, subject: Subject, channel: grpc.aio.Channel, turn_s: float) -> Turn:
        """One in which something was answered: a machine may stand still for as long as a short turn lasts."""
        for attempt in range(_ATTEMPTS):
            turn, failure = await self._one_turn(subject, channel, turn_s * 2**attempt)
            if turn.rows:
                return turn
        raise TrialFailed(f"{subject.reference} answered nothing in {turn.seconds:.1f} s; {turn.unanswered} failed: {failure}")

    async def _one_turn(self, subject: Subject, channel: grpc.aio.Channel, turn_s: float) -> tuple[Turn, str]:
        """Of any rows, and the last failure in it."""
        begin = time.monotonic() + lead_s(turn_s)
        window = _Window(subject, self._stream(subject), self._calls, channel, begin, begin + turn_s)
        playing = asyncio.ensure_future(window.play())
        await asyncio.sleep(begin - time.monotonic())
        before_s, asking_s = self._service.cpu_s(), time.process_time()
        await asyncio.sleep(begin + turn_s - time.monotonic())
        cpu_s, asking_s = self._service.cpu_s() - before_s, time.process_time() - asking_s
        await playing
        self._check(window)
        return Turn(turn_s, window.rows, tuple(window.latencies_s), window.unanswered, max(0.0, cpu_s), asking_s), window.last_failure

    def _check(self, window: "_Window") -> None:
        self._service.check()
        if window.lost:
            raise TrialFailed(f"the service was lost: {window.last_failure}")

    def _stream(self, subject: Subject) -> Iterator[Request]:
        if subject not in self._streams:
            self._streams[subject] = requests(subject.traffic, len(self._material), self._uses, self._seed)
        return self._streams[subject]

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._service.address, _OPTIONS)


@dataclass
class _Window:
    """Counts requests of an open loop that were due between `begin` and `end`, and of a closed loop those that ended then."""

    subject: Subject
    stream: Iterator[Request]
    calls: Calls
    channel: grpc.aio.Channel
    begin: float
    end: float
    rows: int = 0
    latencies_s: list[float] = field(default_factory=list)
    unanswered: int = 0
    lost: bool = False
    last_failure: str = "none was answered in time"

    def __post_init__(self) -> None:
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(self.calls.method)

    @property
    def _goes_on(self) -> bool:
        return time.monotonic() < self.end and not self.lost

    async def play(self) -> None:
        """Until the end, and until all that was asked is answered."""
        async with asyncio.TaskGroup() as group:
            if self.subject.traffic.is_open_loop:
                await self._pace(group)
            else:
                for _ in range(self.subject.traffic.callers):
                    group.create_task(self._ask_on())

    async def _ask_on(self) -> None:
        while self._goes_on:
            await self.ask(time.monotonic())

    async def _pace(self, group: asyncio.TaskGroup) -> None:
        """Latencies count from when a request was due: one that was sent late because the machine was busy waited all the same."""
        due = time.monotonic()
        while self._goes_on:
            request = next(self.stream)
            due += request.gap_s
            await asyncio.sleep(max(0.0, min(due, self.end) - time.monotonic()))
            if due < self.end:
                group.create_task(self.ask(due, request))

    async def ask(self, due: float, request: Request | None = None) -> None:
        """One request, the stream's next unless told."""
        rows = (request or next(self.stream)).rows
        try:
            await self._call(self.calls.request(self.subject.reference, rows), timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            self.last_failure = f"{error.code().name}: {error.details()}"
            self.lost = error.code() is grpc.StatusCode.UNAVAILABLE
            answered = False
        else:
            answered = True
        self._count(due, len(rows), answered=answered)

    def _count(self, due: float, rows: int, *, answered: bool) -> None:
        now = time.monotonic()
        if not self.begin <= (due if self.subject.traffic.is_open_loop else now) < self.end:
            return
        if answered:
            self.rows += rows
            self.latencies_s.append(now - due)
        else:
            self.unanswered += 1
