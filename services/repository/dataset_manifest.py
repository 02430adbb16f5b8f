"""What a dataset's version says of itself: format, rows and columns."""

import hashlib
import json
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field

from services.repository.manifest import FILE_NAME, FileEntry, Frozen


class DatasetFormat(StrEnum):
    """How the rows are written; also the suffix of the file that holds them."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    NPZ = "npz"

    @property
    def file_name(self) -> str:
        return f"data.{self.value}"


class ColumnKind(StrEnum):
    """What a row holds in a column."""

    TEXT = "text"
    INTEGER = "integer"  # 64 bits; true and false are 1 and 0
    NUMBER = "number"  # finite, 64 bits
    TOKENS = "tokens"  # a list of strings
    INTEGERS = "integers"  # a list of integers
    ARRAY = "array"  # one dtype and shape for all rows


class Column(Frozen):
    """A named column; `dtype` (numpy's name) and `shape` (of one row) are set for arrays alone."""

    name: str
    kind: ColumnKind
    dtype: str = ""
    shape: tuple[int, ...] = ()


class Contents(Frozen):
    """What parsing a file tells of it."""

    rows: int = Field(ge=1)
    columns: tuple[Column, ...] = Field(min_length=1)


class DatasetManifest(Frozen):
    """A sealed version's description."""

    name: str
    version: int = Field(ge=1)
    format: DatasetFormat
    file: FileEntry
    contents: Contents
    created: datetime
    upload_id: str = ""

    @property
    def rows(self) -> int:
        return self.contents.rows

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.contents.columns

    @property
    def digest(self) -> str:
        """SHA-256 over the format and the file's digest: two versions with one digest hold the same rows."""
        content = {"format": self.format.value, "file": self.file.sha256}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads a version folder's manifest. Raises OSError or pydantic.ValidationError."""
        return cls.model_validate_json((folder / FILE_NAME).read_bytes())
