"""Real sentences with labels, without a download: the docstrings of installed packages, parsed and never imported."""

import ast
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

PACKAGES = ("numpy", "scipy", "sklearn", "torch")
_FILES_PER_PACKAGE = 160  # parsing takes most of the time: about 3000 sentences in a few seconds
_LENGTH = range(25, 300)


def _docstrings(source: str) -> Iterator[str]:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def _prose(docstring: str) -> Iterator[str]:
    """Sentences of its first paragraph; tables, code and markup are not language."""
    paragraph = " ".join(docstring.split("\n\n", maxsplit=1)[0].split())
    for sentence in re.split(r"(?<=[.!?])\s+", paragraph):
        if len(sentence) in _LENGTH and sentence[0].isalpha() and not re.search(r">>>|::|[{}|\\]|__", sentence):
            yield sentence


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise LookupError(f"{package} is not installed; its docstrings are the sentences")
    return Path(spec.origin).parent


def sources(package: str, files: int = _FILES_PER_PACKAGE) -> Iterator[str]:
    """Python source of a package's first files, its tests left out, in the order of their paths. Raises LookupError."""
    found = (path for path in sorted(_folder(package).rglob("*.py")) if "tests" not in path.parts)
    for path in islice(found, files):
        yield path.read_text(encoding="utf-8")


@cache
def _corpus(package: str) -> tuple[str, ...]:
    """Distinct, in the order of the alphabet: the same on every machine with the same versions."""
    found: set[str] = set()
    for source in sources(package):
        for docstring in _docstrings(source):
            found.update(_prose(docstring))
    return tuple(sorted(found))


def every_labelled_sentence(packages: Sequence[str] = PACKAGES) -> list[tuple[str, str]]:
    """All distinct (sentence, package) pairs by the alphabet; a sentence that several packages share is left out.

    Raises LookupError when a package is not installed.
    """
    owners: dict[str, set[str]] = {}
    for package in packages:
        for sentence in _corpus(package):
            owners.setdefault(sentence, set()).add(package)
    return [(sentence, next(iter(owner))) for sentence, owner in sorted(owners.items()) if len(owner) == 1]


def labelled_sentences(n: int, seed: int, packages: Sequence[str] = PACKAGES) -> list[tuple[str, str]]:
    """`n` of `every_labelled_sentence` in a seeded order.

    Raises LookupError when a package is not installed, ValueError when they hold fewer than `n`.
    """
    pairs = every_labelled_sentence(packages)
    if n > len(pairs):
        raise ValueError(f"{n} sentences were asked for; {', '.join(packages)} hold {len(pairs)}")
    return random.Random(seed).sample(pairs, n)


def sentences(n: int, seed: int) -> list[str]:
    """`n` distinct sentences in a seeded order. Draw one list and cut it where two disjoint sets are needed."""
    return [sentence for sentence, _ in labelled_sentences(n, seed)]
