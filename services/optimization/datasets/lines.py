"""The lines of a text file, decoded one by one, so that a fault has its line."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from services.optimization.datasets.table import BadDataset


def lines(path: Path) -> Iterator[str]:
    """UTF-8 lines with their ends; a byte order mark before the first is dropped. Raises BadDataset."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
            except UnicodeDecodeError as error:
                raise BadDataset(f"line {number}: not UTF-8: {error.reason} at byte {error.start + 1}") from error
