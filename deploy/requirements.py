"""Prints what an extra of pyproject.toml asks for: `python deploy/requirements.py pyproject.toml EXTRA`.

The image's dependency layer is built from this list, so a change of code does not install everything again.
Extras that an extra names (`hone[backends]`) are followed. An empty EXTRA means the project's own dependencies.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extra: str = "") -> list[str]:
    """Requirement specifiers of `extra` beside the project's own, sorted, each once.

    Raises:
        KeyError: no such extra, or one that a named extra refers to.
    """
    own: list[str] = project["dependencies"]
    return sorted({*own, *(_of_extra(project, extra) if extra else ())})


def _of_extra(project: dict[str, Any], extra: str) -> Iterator[str]:
    inner = re.compile(rf"{re.escape(project['name'])}\[([^]]+)\]$")
    for specifier in project["optional-dependencies"][extra]:
        match = inner.match(specifier)
        if match is None:
            yield specifier
            continue
        for name in match[1].split(","):
            yield from _of_extra(project, name.strip())


if __name__ == "__main__":
    file, extra = sys.argv[1:]
    print("\n".join(requirements(tomllib.loads(Path(file).read_text())["project"], extra)))
