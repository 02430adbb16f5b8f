"""`python -m tests.faults.killed_store FOLDER ROOM_BYTES SHARDS KILLS SECONDS SEED`: a disk store under load, killed again and again.

Each life is a process forked from this one, which has all imports behind it and neither thread nor loop: it opens the folder that the
last one left, checks it, tells what is there, and then puts, gets, deletes and clears until SIGKILL comes at a random moment, of its
opening too. It tells each step before and after over a pipe, and this process holds what it told against `KeptValues`. At the end one
more life checks the folder. Prints one JSON object; a broken promise is an AssertionError.
"""

import asyncio
import json
import os
import random
import select
import signal
import sqlite3
import sys
import time
import traceback
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import structlog

from services.cache.disk import disk_store
from tests.faults.kept_values import KeptValues
from tests.faults.store_load import ALL_VALUES_BYTES, NAMESPACES, Tell, load, look_all_up

LONGEST_LOAD_S = 0.04
OPENING_SHARE = 0.25  # of the kills, within as long as opening and check took lately
STAGES = ("opened", "checked")  # what a life tells besides what it does


@dataclass(frozen=True)
class Plan:
    folder: Path
    room_bytes: int
    shards: int
    seed: int


# A life


def live(plan: Plan, life: int, pipe: int) -> None:
    """Until the end of this process, which does not return from it."""

    def tell(*event: object) -> None:
        os.write(pipe, json.dumps(event).encode() + b"\n")

    try:
        asyncio.run(work(plan, life, tell))
    except BaseException:
        tell("failed", traceback.format_exc())
    finally:
        os._exit(1)


async def work(plan: Plan, life: int, tell: Tell) -> None:
    async with disk_store(plan.folder, "least-recently-used", plan.room_bytes, shards=plan.shards) as store:
        tell("opened")
        check_files(plan.folder)
        for namespace in NAMESPACES:
            tell("epoch", namespace, (await store.describe(namespace)).epoch)
        await look_all_up(store, tell)
        assert store.stats().corrupt == 0
        tell("checked")
        await load(store, tell, life, plan.seed)


def check_files(folder: Path) -> None:
    """That SQLite finds each database whole, and that none was given up."""
    files = [*folder.rglob("cache.db"), folder / "namespaces.db"]
    for file in files:
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], file
    assert not list(folder.rglob("damaged"))


# Life after life


@dataclass(frozen=True)
class Moment:
    """So many seconds after a life began, or after it had checked the folder."""

    delay_s: float
    after_check: bool


class Killer:
    """Begins lives, ends them, and holds what they tell against what may be."""

    def __init__(self, plan: Plan, forgets: bool) -> None:
        self._plan = plan
        self._chance = random.Random(plan.seed)
        self._model = KeptValues(forgets)
        self._check_s = 0.05
        self.told: Counter[str] = Counter()  # events by their kind
        self.killed: Counter[str] = Counter()  # lives by how far they came

    @property
    def forgotten(self) -> int:
        return self._model.forgotten

    def kill_one(self, life: int) -> None:
        if self._chance.random() < OPENING_SHARE:
            events = self._end(life, Moment(self._chance.uniform(0, self._check_s), after_check=False))
        else:
            events = self._end(life, Moment(self._chance.uniform(0, LONGEST_LOAD_S), after_check=True))
        kinds = {event[0] for event in events}
        self.killed["under load" if "checked" in kinds else "in the check" if "opened" in kinds else "while opening"] += 1

    def check(self, life: int) -> None:
        """One more life, which comes to the end of its check."""
        assert ["checked"] in self._end(life, Moment(0, after_check=True))

    def _end(self, life: int, moment: Moment) -> list[list[Any]]:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            live(self._plan, life, writing)
        os.close(writing)
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            journal = self._listen(pipe, moment)
            os.kill(pid, signal.SIGKILL)
            journal += pipe.readall()
        _, status = os.waitpid(pid, 0)
        # The last line may have been cut short: what it would have told has not been told.
        events = [json.loads(line) for line in journal.split(b"\n")[:-1]]
        assert os.WIFSIGNALED(status), next(event[1] for event in events if event[0] == "failed")
        for kind, *event in events:
            self.told[kind] += 1
            if kind not in STAGES:
                self._model.take(kind, *event)
        self._model.kill()
        return events

    def _listen(self, pipe: Any, moment: Moment) -> bytes:
        """What the life told until its moment came."""
        journal = b""
        begun_s, checked_s = time.monotonic(), inf
        while time.monotonic() - (checked_s if moment.after_check else begun_s) < moment.delay_s:
            if select.select([pipe], [], [], 0.002)[0]:
                told = pipe.read(1 << 16)
                if not told:  # it ended by itself
                    break
                journal += told
            if checked_s == inf and b'["checked"]' in journal:
                checked_s = time.monotonic()
                self._check_s = 0.9 * self._check_s + 0.1 * (checked_s - begun_s)
        return journal


def main(folder: str, room_bytes: str, shards: str, kills: str, seconds: str, seed: str) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    plan = Plan(Path(folder), int(room_bytes), int(shards), int(seed))
    killer = Killer(plan, forgets=plan.room_bytes < 2 * ALL_VALUES_BYTES)
    begun_s, life = time.monotonic(), 0
    while life < int(kills) and time.monotonic() - begun_s < float(seconds):
        killer.kill_one(life)
        life += 1
    killer.check(life)
    took_s = time.monotonic() - begun_s
    print(json.dumps({"seconds": took_s, "killed": killer.killed, "told": killer.told, "forgotten": killer.forgotten}))


if __name__ == "__main__":
    main(*sys.argv[1:])
