"""Judging an uploaded data file before anything trusts it, and showing a sealed one's first rows: in a child process with limits.

Run as a module it is that child: `dataset_inspection contents FILE FORMAT` or `dataset_inspection head VERSION_FOLDER ROWS` writes
one JSON object to stdout, `{"contents": …}`, `{"rows": …}` or `{"fault": …}`.
"""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from services.optimization.datasets.parsing import BadDataset, Table, Values, largest_bytes, read_head, read_table
from services.optimization.uploads import limited_child
from services.repository.dataset_manifest import Contents, DatasetFormat, DatasetManifest

MODULE = "services.optimization.uploads.dataset_inspection"
ADDRESS_SPACE_BYTES = 2 << 30  # beside what the file may grow to, twice: as bytes and as values
MAX_TEXT_CHARACTERS = 1000
MAX_LIST_ENTRIES = 100
CUT = "…"


def inspect_file(path: Path, format: DatasetFormat) -> Contents:  # noqa: A002
    """Rows and columns of an uploaded file. Raises BadDataset whose text names the line, row, column or array."""
    return Contents.model_validate(_ask("contents", str(path.resolve()), format.value)["contents"])


def head(folder: Path, rows: int) -> list[dict[str, Any]]:
    """The first rows of a sealed version, as plain JSON by column; see `shown`. Raises BadDataset."""
    found: list[dict[str, Any]] = _ask("head", str(folder.resolve()), str(rows))["rows"]
    return found


def shown(table: Table, rows: int) -> list[dict[str, Any]]:
    """Rows as plain JSON: texts and lists cut short, an array as its `dtype` and `shape`."""
    return [{name: _value(values, row) for name, values in table.columns.items()} for row in range(min(rows, table.rows))]


def _value(values: Values, row: int) -> Any:
    value = values[row]
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.name, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str):
        return _cut(value)
    entries = [_cut(entry) if isinstance(entry, str) else entry for entry in islice(value, MAX_LIST_ENTRIES)]
    return entries if len(entries) == len(value) else [*entries, CUT]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else text[:MAX_TEXT_CHARACTERS] + CUT


def _ask(*arguments: str) -> dict[str, Any]:
    try:
        answer = limited_child.ask(MODULE, *arguments)
    except limited_child.NoAnswer as error:
        raise BadDataset(str(error)) from error
    if "fault" in answer:
        raise BadDataset(answer["fault"])
    return answer


def _main(question: str, path: Path, argument: str) -> dict[str, Any]:
    """BadDataset is the file's fault; anything else ends the child with its traceback."""
    manifest = DatasetManifest.read(path) if question == "head" else None
    file = path / manifest.format.file_name if manifest else path
    space = ADDRESS_SPACE_BYTES + 2 * largest_bytes(file)
    limited_child.limit_self(space)
    try:
        if manifest:
            rows = int(argument)
            return {"rows": shown(read_head(file, manifest.format, manifest.columns, rows), rows)}
        return {"contents": read_table(file, DatasetFormat(argument)).contents.model_dump(mode="json")}
    except BadDataset as fault:
        return {"fault": str(fault)}
    except MemoryError:
        return {"fault": f"it asks for more than the {space >> 30} GB that parsing may take"}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))
