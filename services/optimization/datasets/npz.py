"""numpy's NPZ: a zip of arrays, read without pickle and without trusting a size that the file declares."""

import math
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from services.optimization.datasets.table import (
    MAX_ROWS,
    BadDataset,
    Table,
    Values,
    check_names,
    first_not_finite,
    scalar_kind,
    table,
)
from services.repository.dataset_manifest import Column, ColumnKind

_SUFFIX = ".npy"
_MAX_DIMENSIONS = 8
_READ_BYTES = 1 << 20
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class _Header:
    """What an array's own header declares, checked against the size of its member in the zip."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def read_npz(path: Path, max_bytes: int, first: int | None = None) -> Table:
    """The table, or its first rows. Raises BadDataset, also where the file says that it grows beyond `max_bytes`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, max_bytes)
            check_names(list(members))
            columns = [_column(name, _array(archive, name, member, first)) for name, member in members.items()]
    except BadDataset:
        raise
    except _BROKEN as error:
        raise BadDataset(f"not NPZ, or truncated: {error}") from error
    lengths = {column.name: len(values) for column, values in columns}
    if len({*lengths.values()}) > 1:
        raise BadDataset(f"arrays have first dimensions of different lengths: {', '.join(f'{n} {size}' for n, size in lengths.items())}")
    return table(columns)


def _members(archive: zipfile.ZipFile, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """By array name, before anything is unpacked. Raises BadDataset."""
    infos = archive.infolist()
    if not infos:
        raise BadDataset("the file is empty: it holds no array")
    for info in infos:
        name = info.filename.removesuffix(_SUFFIX)
        if name == info.filename or not name or "/" in name or "\\" in name or name.startswith("."):
            raise BadDataset(f"{info.filename[:200]!r}: an array's file is a plain name that ends with {_SUFFIX}")
        if info.flag_bits & 1:
            raise BadDataset(f"array {name!r}: encrypted")
    declared = sum(info.file_size for info in infos)
    if declared > max_bytes:
        raise BadDataset(f"it would grow to {declared} bytes; a file of its size may to {max_bytes}")
    names = [info.filename.removesuffix(_SUFFIX) for info in infos]
    check_names(names)
    return dict(zip(names, infos, strict=True))


def _array(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo, first: int | None) -> NDArray[Any]:
    with archive.open(info) as member:
        try:
            header = _header(member, info.file_size)
        except BadDataset as error:
            raise BadDataset(f"array {name!r}: {error}") from error
        if first is not None and not header.fortran_order:
            return _read(member, header, min(first, header.shape[0]))
        found = _read(member, header, header.shape[0])
        if member.read(1):  # at the end of a member zipfile checks its sum
            raise BadDataset(f"array {name!r}: more bytes than its header says")
        return found[:first]


def _header(member: IO[bytes], size_bytes: int) -> _Header:
    """Raises BadDataset."""
    try:
        version = np.lib.format.read_magic(member)
        if version not in _HEADERS:
            raise BadDataset(f"format version {'.'.join(map(str, version))} is not read")
        header = _Header(*_HEADERS[version](member))
    except ValueError as error:
        raise error if isinstance(error, BadDataset) else BadDataset(f"not an array: {error}") from error
    _check(header)
    declared = member.tell() + header.shape[0] * header.row_bytes
    if declared != size_bytes:
        raise BadDataset(f"its header declares {declared} bytes, the file holds {size_bytes}")
    return header


def _check(header: _Header) -> None:
    """Raises BadDataset for what no column holds."""
    dtype, shape = header.dtype, header.shape
    if dtype.hasobject:
        raise BadDataset("holds Python objects, which would have to be unpickled")
    if dtype.kind not in "biufU" or (dtype.kind != "U" and dtype.itemsize > 8):
        raise BadDataset(f"type {dtype} is not among booleans, integers, floats up to 64 bits and text")
    if not 0 < len(shape) <= (1 if dtype.kind == "U" else _MAX_DIMENSIONS):
        raise BadDataset(f"shape {shape} is not the rows and up to {_MAX_DIMENSIONS - 1} more dimensions, none for text")
    if not 0 < shape[0] <= MAX_ROWS:
        raise BadDataset(f"{shape[0]} rows; 1 to {MAX_ROWS} are read" if shape[0] else "no rows")
    if any(type(size) is not int or size < 1 for size in shape):  # numpy takes True for 1
        raise BadDataset(f"shape {shape} has no elements in a row")


def _read(member: IO[bytes], header: _Header, rows: int) -> NDArray[Any]:
    content = bytearray(rows * header.row_bytes)
    at = 0
    while at < len(content):  # piece by piece: reading at once would hold the array twice
        piece = member.read(min(_READ_BYTES, len(content) - at))
        if not piece:
            raise BadDataset("not NPZ, or truncated: an array ends before its declared size")
        content[at : at + len(piece)] = piece
        at += len(piece)
    if not content:  # texts that are all empty
        return np.zeros(rows, "<U1")
    flat: NDArray[Any] = np.frombuffer(content, header.dtype)
    shape = (rows, *header.shape[1:])
    found = flat.reshape(shape[::-1]).T if header.fortran_order else flat.reshape(shape)
    return found.astype(header.dtype.newbyteorder("="), order="C", copy=False)


def _column(name: str, values: NDArray[Any]) -> tuple[Column, Values]:
    if values.dtype.kind == "U":
        return Column(name=name, kind=ColumnKind.TEXT), _texts(name, values)
    if values.dtype.kind == "f":
        row = first_not_finite(values)
        if row is not None:
            raise BadDataset(f"array {name!r}: row {row + 1} holds NaN or infinity")
    if values.ndim > 1:
        return Column(name=name, kind=ColumnKind.ARRAY, dtype=values.dtype.name, shape=values.shape[1:]), values
    kind = scalar_kind(values)
    if values.dtype == np.uint64 and values.size and int(values.max()) > np.iinfo(np.int64).max:
        raise BadDataset(f"array {name!r}: holds an integer too large for 64 bits with a sign")
    return Column(name=name, kind=kind), values.astype(np.int64 if kind is ColumnKind.INTEGER else np.float64)


def _texts(name: str, values: NDArray[Any]) -> list[str]:
    # Before Python sees them: a number that is no code point is a SystemError there, half of a surrogate pair no text.
    codes = np.ascontiguousarray(values).view(np.uint32).reshape(len(values), -1)
    bad = ((codes > sys.maxunicode) | ((codes >= 0xD800) & (codes <= 0xDFFF))).any(axis=1)
    if bad.any():
        raise BadDataset(f"array {name!r}: row {int(np.argmax(bad)) + 1} is no text: it holds what is not a character of Unicode")
    texts: list[str] = values.tolist()
    return texts
