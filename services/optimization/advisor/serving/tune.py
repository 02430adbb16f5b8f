"""Original and candidate behind a service of their own: compared as they are, or the candidate's settings searched and all measured."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from services.optimization.advisor.serving.calls_wire import calls_for
from services.optimization.advisor.serving.capacity import AtTarget, capacity
from services.optimization.advisor.serving.knobs import Conditions, Settings, knobs
from services.optimization.advisor.serving.material import Material, material_of
from services.optimization.advisor.serving.played import Played
from services.optimization.advisor.serving.replay import Player, Subject, lead_s
from services.optimization.advisor.serving.served import (
    ServedAdvice,
    ServedCapacity,
    ServedFigures,
    ServingAdvice,
    TriedSettings,
    ratio,
)
from services.optimization.advisor.serving.settings import Found, NotPlayed, quickness, throughput, tune
from services.optimization.advisor.serving.traffic import Traffic
from services.optimization.advisor.serving.trial import TrialFailed, TrialService, trial_service
from services.optimization.examples import Examples
from services.optimization.folder import size_bytes
from services.optimization.recipe import Objective
from services.optimization.report import Interval
from services.optimization.techniques import Model

_SEARCH_SHARE = 0.6  # of the time, in which knobs are begun; the rest is for measuring what was found
_LEAST_TURN_S, _MOST_TURN_S = 0.3, 3.0
_TURNS = 150  # about so many turns are played while settings are searched, their leads included
_REQUESTS = 5  # that each caller gets answered in a turn, where the time allows it
_FIRST_TURN_S = 1.0
_LEAST_ROUNDS, _MOST_ROUNDS = 6, 20
_MOST_MEASURED, _COMPARED = 3, 2  # versions, in the end of a search and without one

_HELD_RATIO = 4  # of memory to files, that a version is reckoned with while its rows run
_LEAST_LOADED, _MOST_LOADED = 3, 8

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """`seconds` for all of it; the least that a measurement takes is measured however few they are."""

    objective: Objective = Objective.THROUGHPUT
    seconds: float = 120.0
    max_p99_ms: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class ServedPair:
    """Two models, served side by side on the cores of this process by a service of their own.

    `examples` are asked where the traffic brings no rows; `scratch` exists, on the disk of the models, and is left as it was.
    Both methods block, and raise TrialFailed where serving could not be tried, NotEnoughData where there is nothing to ask.
    """

    original: Model
    candidate: Model
    examples: Examples
    traffic: Traffic
    wanted: Wanted
    scratch: Path
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def tune(self, say: Say = lambda message: None) -> ServedAdvice:
        """What the service is worth with either, and how to serve the candidate."""
        with self._session(say) as session:
            session.choose_turns(_TURNS, 2 * _MOST_MEASURED)
            return session.conclude(session.search())

    def compare(self) -> Interval:
        """How many times as many rows a second the service answers with the candidate, its settings being the defaults."""
        with self._session() as session:
            session.choose_turns(_COMPARED * _MOST_ROUNDS, _COMPARED)
            return session.compare()

    @contextmanager
    def _session(self, say: Say = lambda message: None) -> Iterator["_Session"]:
        begun, seed = time.monotonic(), self.wanted.seed
        material = material_of(self.traffic, self.candidate.folder, self.candidate.signature, self.examples, seed)
        with trial_service(self.scratch, self.environment) as service:
            player = Player(service, material, calls_for(material, self.candidate.signature.task), seed)
            yield _Session(service, player, material, self.original, self.candidate, self.traffic, self.wanted, begun, say)


@dataclass
class _Session:
    """One trial service and what is loaded in it."""

    service: TrialService
    player: Player
    material: Material
    original: Model
    candidate: Model
    traffic: Traffic
    wanted: Wanted
    begun: float
    say: Say
    turn_s: float = _LEAST_TURN_S  # of the candidate's
    final_turn_s: float = _LEAST_TURN_S  # where the original takes part
    loaded: dict[str, str] = field(default_factory=dict)  # by what they are: their references

    @property
    def seconds_left(self) -> float:
        return self.begun + self.wanted.seconds - time.monotonic()

    def choose_turns(self, turns: int, final_versions: int) -> None:
        """As long as the time allows, and as callers need to be answered a few times: a shorter turn would not see the slowest calls.

        About so many turns are to be played in all, and those in which the original takes part have to suffice for so many versions.
        """
        fair_s = min(max(self.seconds_left / turns, _LEAST_TURN_S), _MOST_TURN_S)
        self.turn_s = max(fair_s, self._needed_s(self._tuned({}), final_versions))
        self.final_turn_s = max(self.turn_s, self._needed_s(self._original(), final_versions))

    def _needed_s(self, reference: str, final_versions: int) -> float:
        alone_s = self.player.seconds_alone(Subject(reference, self.traffic))
        (full,) = self.player.play([Subject(reference, self.traffic.closed_loop())], 1, max(_FIRST_TURN_S, _REQUESTS * alone_s))
        fitting_s = self.seconds_left / (final_versions * (_LEAST_ROUNDS + 1))
        waited_s = full.latency_s(0.5)
        return max(min(_REQUESTS * waited_s, fitting_s), _REQUESTS * alone_s)

    def compare(self) -> Interval:
        closed = self.traffic.closed_loop()
        before, after = self._play([Subject(reference, closed) for reference in (self._original(), self._tuned({}))], self.seconds_left)
        return ratio(before, after, self.wanted.seed)

    def search(self) -> Found:
        is_latency = self.wanted.objective is Objective.LATENCY
        traffic = self.traffic if is_latency else self.traffic.closed_loop()
        begun = time.monotonic()
        end = begun + _SEARCH_SHARE * max(0.0, self.seconds_left)

        def play(settings: Sequence[Settings], rounds: int) -> list[Played]:
            self.say(f"serving with {', '.join(_told(each) for each in settings)}")
            self._unload_all_but([_told(each) for each in settings])
            try:
                return self.player.play([Subject(self._tuned(each), traffic) for each in settings], rounds, self.turn_s)
            except TrialFailed as failure:
                self.service.check()
                raise NotPlayed(str(failure)) from failure

        waiting = None if traffic.is_open_loop else traffic.callers * max(traffic.request_rows)
        conditions = Conditions(len(os.sched_getaffinity(0)), tuple(self.material.lengths), waiting, self.material.can_vary)
        merit = quickness if is_latency else throughput
        return tune(knobs(conditions), play, merit, lambda: time.monotonic() > end, self._most_loaded())

    def _most_loaded(self) -> int:
        """Versions at once; as many as are measured together in the end must fit in any case."""
        bytes_each = _HELD_RATIO * size_bytes(self.candidate.folder)
        return min(max(int(psutil.virtual_memory().available) // bytes_each, _LEAST_LOADED), _MOST_LOADED)

    def conclude(self, found: Found) -> ServedAdvice:
        """Everything that is told, measured anew and together."""
        settings, seed = found.settings, self.wanted.seed
        self.say(f"measuring the original, and the candidate with {_told(settings)}")
        self._unload_all_but([_ORIGINAL, _told({}), _told(settings)])
        references = [self._original(), self._tuned({}), *([self._tuned(settings)] if settings else [])]
        closed = self.traffic.closed_loop()
        # Half of the time: there is more to be measured.
        original, default, *tuned = self._play([Subject(reference, closed) for reference in references], self.seconds_left / 2)
        best = tuned[0] if tuned else default
        at_rate = [ServedFigures.of(each, seed) for each in self._at_rate([references[0], references[-1]])]
        capacities = [self._capacity(reference) for reference in (references[0], references[-1])]
        return ServedAdvice(
            advice=_advice(found),
            original=ServedFigures.of(original, seed),
            candidate_default=ServedFigures.of(default, seed),
            candidate=ServedFigures.of(best, seed),
            speedup=ratio(original, best, seed),
            settings_gain=ratio(default, best, seed),
            original_at_rate=at_rate[0] if at_rate else None,
            candidate_at_rate=at_rate[1] if at_rate else None,
            original_capacity=capacities[0],
            candidate_capacity=capacities[1],
            cores=len(os.sched_getaffinity(0)),
            seconds=time.monotonic() - self.begun,
        )

    def _at_rate(self, references: Sequence[str]) -> list[Played]:
        if not self.traffic.is_open_loop:
            return []
        return self._play([Subject(reference, self.traffic) for reference in references], self.seconds_left / 2)

    def _capacity(self, reference: str) -> ServedCapacity | None:
        """The best number of callers is played again for as many turns as the rest: the best of several looks better than it is."""
        target_ms = self.wanted.max_p99_ms
        if target_ms is None:
            return None

        def subject(callers: int) -> Subject:
            return Subject(reference, self.traffic.closed_loop(callers))

        found = capacity(lambda callers: self.player.play([subject(callers)], 1, self.final_turn_s)[0], target_ms / 1e3)
        if found is None:
            return None
        (played,) = self.player.play([subject(found.callers)], _LEAST_ROUNDS, self.final_turn_s)
        return ServedCapacity.of(AtTarget(found.callers, played), target_ms, self.wanted.seed)

    def _play(self, subjects: Sequence[Subject], seconds: float) -> list[Played]:
        """For as many rounds as fit into the time, within bounds."""
        fitting = int(seconds / (len(subjects) * (self.final_turn_s + lead_s(self.final_turn_s))))
        return self.player.play(subjects, min(max(fitting, _LEAST_ROUNDS), _MOST_ROUNDS), self.final_turn_s)

    def _original(self) -> str:
        return self._load(_ORIGINAL, self.original, {})

    def _tuned(self, settings: Settings) -> str:
        return self._load(_told(settings), self.candidate, settings)

    def _load(self, key: str, model: Model, settings: Settings) -> str:
        if key not in self.loaded:
            self.loaded[key] = self.service.add(model, settings)
        return self.loaded[key]

    def _unload_all_but(self, keys: Sequence[str]) -> None:
        for key in [key for key in self.loaded if key not in keys]:
            self.service.remove(self.loaded.pop(key))


_ORIGINAL = "the original"


def _told(settings: Settings) -> str:
    """For people, and as a key."""
    return ", ".join(f"{name}={value}" for name, value in sorted(settings.items())) or "the defaults"


def _advice(found: Found) -> ServingAdvice:
    tried = [(TriedSettings.of(change), change.is_kept) for change in found.changes]
    return ServingAdvice(
        settings=found.settings,
        kept=tuple(each for each, is_kept in tried if is_kept),
        not_kept=tuple(each for each, is_kept in tried if not is_kept),
        left=tuple(found.left),
        failed=found.failed,
    )
