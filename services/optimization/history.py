"""How long steps took on this machine, for estimates: one JSON line per finished step."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from services.optimization.techniques import Parameters, Technique

HISTORY = "history.jsonl"  # beside kept steps

_MOST_LINES = 2000
_RECENT = 5


class History:
    """A file that several jobs append to; a line torn by a kill is passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, technique: str, parameters: Mapping[str, Any], megabytes: float, examples: int, seconds: float) -> None:
        line = {"technique": technique, "parameters": dict(parameters), "megabytes": megabytes, "examples": examples, "seconds": seconds}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        found = []
        with suppress(FileNotFoundError):
            for line in self._path.read_text().splitlines()[-_MOST_LINES:]:
                with suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def estimate(self, technique: Technique, parameters: Parameters, megabytes: float, examples: int) -> tuple[float, str]:
        """(seconds, basis): "measured" scales earlier runs of the technique by what they had to do, "assumed" is its declaration's guess.

        Runs with the same parameters count alone where there are any. The declared guess gives the scale: what took twice its guess
        before is expected to take twice its guess again.
        """
        assumed = technique.assume_seconds(megabytes, examples)
        lines = [line for line in self._lines() if line["technique"] == technique.name]
        same = [line for line in lines if line["parameters"] == parameters.model_dump(mode="json")]
        ratios = [line["seconds"] / technique.assume_seconds(line["megabytes"], line["examples"]) for line in (same or lines)[-_RECENT:]]
        return (assumed * median(ratios), "measured") if ratios else (assumed, "assumed")
