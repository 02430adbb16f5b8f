"""Every format read back as it was written, and every malformed file told by its line, row, column or array."""

import csv
import io
import json
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from services.optimization.datasets.parsing import BadDataset, Table, read_head, read_table
from services.repository.dataset_manifest import ColumnKind, DatasetFormat

JSONL, CSV, PARQUET, NPZ = DatasetFormat.JSONL, DatasetFormat.CSV, DatasetFormat.PARQUET, DatasetFormat.NPZ


def read(content: bytes, form: DatasetFormat) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data")
        path.write_bytes(content)
        return read_table(path, form)


def fault(content: bytes, form: DatasetFormat) -> str:
    with pytest.raises(BadDataset) as caught:
        read(content, form)
    return str(caught.value)


def kinds(table: Table) -> dict[str, ColumnKind]:
    return {column.name: column.kind for column in table.schema}


def parquet(columns: Mapping[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), file, **options)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zipped(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npy(array: Any, *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), allow_pickle=allow_pickle)
    return file.getvalue()


def npy_header(descr: str, shape: str, data: bytes = b"") -> bytes:
    """An array whose header says what no array does."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


# What is written is read


def test_jsonl_of_every_kind() -> None:
    rows = [
        {"text": "naïve\n", "count": 1, "score": 1, "ok": True, "words": [], "ids": [2, 3]},
        {"ids": [], "text": "", "count": -(2**63), "score": 0.5, "ok": False, "words": ["a", "b"]},
    ]
    table = read("\n".join(map(json.dumps, rows)).encode(), JSONL)
    assert kinds(table) == {
        "text": ColumnKind.TEXT,
        "count": ColumnKind.INTEGER,
        "score": ColumnKind.NUMBER,
        "ok": ColumnKind.INTEGER,
        "words": ColumnKind.TOKENS,
        "ids": ColumnKind.INTEGERS,
    }
    assert table.rows == 2
    assert table["text"] == ["naïve\n", ""]
    assert (table["words"], table["ids"]) == ([[], ["a", "b"]], [[2, 3], []])
    assert [np.asarray(table[name]).tolist() for name in ("count", "score", "ok")] == [[1, -(2**63)], [1.0, 0.5], [1, 0]]
    assert [np.asarray(table[name]).dtype for name in ("count", "score", "ok")] == [np.int64, np.float64, np.int64]


@pytest.mark.parametrize("form", [JSONL, CSV])
def test_a_byte_order_mark_and_empty_lines_at_the_end_are_harmless(form: DatasetFormat) -> None:
    content = {JSONL: b'{"a": 1}\r\n\r\n\n', CSV: b"a\r\n1\r\n\r\n"}[form]
    table = read(b"\xef\xbb\xbf" + content, form)
    assert (kinds(table), table.rows) == ({"a": ColumnKind.INTEGER}, 1)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        (["1", "-2", "0"], ColumnKind.INTEGER),
        (["1", "2.5", "1e-5"], ColumnKind.NUMBER),
        (["1", "2", "three"], ColumnKind.TEXT),
        (["007", "1", "2"], ColumnKind.TEXT),  # as a number it would lose its zeros
        (["+1", "1", "2"], ColumnKind.TEXT),
        (["12345678901234567890123", "1", "2"], ColumnKind.TEXT),
        (["9223372036854775808", "1", "2"], ColumnKind.TEXT),
        (["9223372036854775807", "1", "2"], ColumnKind.INTEGER),
        (["", "", ""], ColumnKind.TEXT),
        (["", "a", "nan"], ColumnKind.TEXT),
        (["٣", "1", "2"], ColumnKind.TEXT),
    ],
)
def test_a_csv_column_is_numbers_where_every_field_is(fields: list[str], kind: ColumnKind) -> None:
    table = read(("a,b\n" + "".join(f"{field},x\n" for field in fields)).encode(), CSV)
    assert kinds(table)["a"] is kind
    if kind is ColumnKind.TEXT:
        assert table["a"] == fields


def test_csv_quotes_lines_and_long_fields() -> None:
    long = "x" * 200_000  # over the csv module's own limit
    limit = csv.field_size_limit()
    table = read(f'text,n\r\n"a, ""b""\r\nc",1\r\n{long},2\r\n'.encode(), CSV)
    assert table["text"] == ['a, "b"\r\nc', long]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_parquet_of_every_kind(compression: str) -> None:
    columns = {
        "text": pa.array(["a", "b", "c"], pa.large_string()),
        "u": pa.array([1, 2, 3], pa.uint8()),
        "b": [True, False, True],
        "h": pa.array([0.5, 1, 2], pa.float16()),
        "words": [["a"], [], ["b", "c"]],
        "ids": pa.array([[1], [2, 3], []], pa.list_(pa.int32())),
        "pairs": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int64(), 2)),
    }
    table = read(parquet(columns, compression=compression, row_group_size=2), PARQUET)
    integer, integers = ColumnKind.INTEGER, ColumnKind.INTEGERS
    expected = [ColumnKind.TEXT, integer, integer, ColumnKind.NUMBER, ColumnKind.TOKENS, integers, integers]
    assert list(kinds(table).values()) == expected
    assert (table["text"], table["words"], table["ids"]) == (["a", "b", "c"], [["a"], [], ["b", "c"]], [[1], [2, 3], []])
    assert [np.asarray(table[name]).tolist() for name in ("u", "b", "h")] == [[1, 2, 3], [1, 0, 1], [0.5, 1, 2]]


def test_npz_of_every_kind() -> None:
    images = np.arange(24, dtype=">f4").reshape(2, 3, 4)
    table = read(npz(images=images, f=np.asfortranarray(images[:, 0]), label=np.uint8([1, 2]), t=np.array(["é", ""]), b=[True, False]), NPZ)
    schema = {column.name: column for column in table.schema}
    assert (schema["images"].kind, schema["images"].dtype, schema["images"].shape) == (ColumnKind.ARRAY, "float32", (3, 4))
    assert [schema[name].kind for name in ("label", "t", "b")] == [ColumnKind.INTEGER, ColumnKind.TEXT, ColumnKind.INTEGER]
    np.testing.assert_array_equal(table["images"], images)
    np.testing.assert_array_equal(table["f"], images[:, 0])
    assert table["t"] == ["é", ""]
    assert read(npz(t=np.array(["", ""])), NPZ)["t"] == ["", ""]


@pytest.mark.parametrize("form", list(DatasetFormat))
def test_the_first_rows_are_the_tables(tmp_path: Path, form: DatasetFormat) -> None:
    numbers = list(range(1, 51))
    content = {
        JSONL: "".join(f'{{"n": {n}}}\n' for n in numbers).encode(),
        CSV: ("n\n" + "".join(f"{n}\n" for n in numbers)).encode(),
        PARQUET: parquet({"n": numbers}, row_group_size=2),
        NPZ: npz(n=np.array(numbers)),
    }[form]
    path = tmp_path / "data"
    path.write_bytes(content)
    schema = read_table(path, form).schema
    for rows, expected in ((1, [1]), (7, numbers[:7]), (99, numbers)):
        found = read_head(path, form, schema, rows)
        assert found.schema == schema
        assert np.asarray(found["n"]).tolist()[:rows] == expected[: found.rows]
        assert found.rows >= min(rows, 2)


def test_the_first_rows_of_csv_have_the_whole_columns_kind(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"a,b\n1.50,1\n2,2\nthree,2.5\n")
    schema = read_table(path, CSV).schema
    found = read_head(path, CSV, schema, 2)
    assert found["a"] == ["1.50", "2"]
    assert np.asarray(found["b"]).dtype == np.float64


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@st.composite
def columns(draw: st.DrawFn, *cells: st.SearchStrategy[Any]) -> dict[str, list[Any]]:
    rows = draw(st.integers(1, 5))
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    return {name: draw(st.lists(draw(st.sampled_from(cells)), min_size=rows, max_size=rows)) for name in names}


def plain(table: Table) -> dict[str, list[Any]]:
    return {name: values.tolist() if isinstance(values, np.ndarray) else values for name, values in table.columns.items()}


LISTS = (st.lists(TEXTS, max_size=3), st.lists(INTEGERS, max_size=3))


@settings(deadline=None, max_examples=80)
@given(columns(TEXTS, INTEGERS, FLOATS, st.booleans(), *LISTS))
def test_any_rows_as_jsonl(written: dict[str, list[Any]]) -> None:
    rows = [dict(zip(written, row, strict=True)) for row in zip(*written.values(), strict=True)]
    content = "\n".join(json.dumps(row, ensure_ascii=index % 2 == 0) for index, row in enumerate(rows))
    assert plain(read(content.encode(), JSONL)) == written


@settings(deadline=None, max_examples=80)
@given(columns(TEXTS.map("t{}".format), INTEGERS, FLOATS))
def test_any_rows_as_csv(written: dict[str, list[Any]]) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(written)
    for row in zip(*written.values(), strict=True):
        writer.writerow([json.dumps(value) if isinstance(value, float) else value for value in row])
    assert plain(read(file.getvalue().encode(), CSV)) == written


@settings(deadline=None, max_examples=50)
@given(columns(TEXTS, INTEGERS, FLOATS, st.booleans(), *(entries.filter(len) for entries in LISTS)), st.integers(1, 3))
def test_any_rows_as_parquet(written: dict[str, list[Any]], row_group_size: int) -> None:
    assert plain(read(parquet(written, row_group_size=row_group_size), PARQUET)) == written


DTYPES = st.one_of(hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.floating_dtypes(sizes=(16, 32, 64)))


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(st.integers(1, 4))
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=3).map(lambda shape: (rows, *shape))
    elements = {"allow_nan": False, "allow_infinity": False}
    names = draw(st.lists(st.from_regex("[a-z]{1,5}", fullmatch=True), min_size=1, max_size=3, unique=True))
    return {name: draw(hnp.arrays(DTYPES, shapes, elements=elements)) for name in names}


@settings(deadline=None, max_examples=50)
@given(arrays(), st.booleans())
def test_any_arrays_as_npz(written: dict[str, Any], fortran: bool) -> None:
    ordered = {f"{name}.npy": npy(np.asfortranarray(array) if fortran else array) for name, array in written.items()}
    found = read(zipped(ordered, zipfile.ZIP_DEFLATED), NPZ)
    for column in found.schema:
        expected = written[column.name]
        np.testing.assert_array_equal(found[column.name], expected)
        assert (column.kind, column.dtype, column.shape) == (ColumnKind.ARRAY, expected.dtype.name, expected.shape[1:])


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(list(DatasetFormat)), st.binary(max_size=200))
def test_garbage_is_refused_or_read_and_never_anything_else(form: DatasetFormat, content: bytes) -> None:
    with suppress(BadDataset):
        assert read(content, form).rows > 0


SAMPLES = {
    PARQUET: parquet({"a": ["x", "y"] * 50, "n": list(range(100))}),
    NPZ: zipped({"a.npy": npy(np.arange(64.0)), "b.npy": npy(np.arange(64))}, zipfile.ZIP_DEFLATED),
}


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([PARQUET, NPZ]), st.data())
def test_a_flipped_or_missing_byte_is_refused_or_read(form: DatasetFormat, data: st.DataObject) -> None:
    sample = bytearray(SAMPLES[form])
    at = data.draw(st.integers(0, len(sample) - 1))
    if data.draw(st.booleans()):
        del sample[at:]
    else:
        sample[at] ^= data.draw(st.integers(1, 255))
    with suppress(BadDataset):
        assert read(bytes(sample), form).rows > 0


# What is malformed is told


@pytest.mark.parametrize("form", list(DatasetFormat))
def test_an_empty_file(form: DatasetFormat) -> None:
    assert fault(b"", form) == "the file is empty"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\n\n", "no rows"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2: not UTF-8: invalid start byte at byte 8"),
        ('{"a": "é"}'.encode("utf-16"), "line 1: not UTF-8"),
        (b'{"a": 1}\n{"a": 2\n', "line 2: not JSON: "),
        (b'{"a": 1}\n{"a": 2}}\n', "line 2: not JSON: Extra data"),
        (b"[" * 100_000, "line 1: not JSON: "),
        (b'{"a": ' + b"1" * 5000 + b"}", "line 1: not JSON: "),
        (b"[1]", "line 1: not a JSON object"),
        (b'[{"a": 1}, {"a": 2}]', "line 1: not a JSON object"),
        (b"{}", "must have 1 to 1000 columns, not 0"),
        (b'{"": 1}', "the name of column 1, '', must be"),
        (b'{"a\\nb": 1}', "the name of column 1, 'a\\nb', must be"),
        (b'{"a": 1}\n\n{"a": 2}\n', "line 2: empty"),
        (b'{"a": 1, "b": 2}\n{"a": 1}\n', "line 2: the key 'b' of line 1 is missing"),
        (b'{"a": 1}\n{"a": 1, "b": 2}\n', "line 2: the key 'b' is not in line 1"),
        (b'{"a": 1}\n{"b": 1}\n', "line 2: the key 'a' of line 1 is missing"),
        (b'{"a": 1, "a": 2}', "line 1: the key 'a' occurs twice"),
        (b'{"a": 1}\n{"a": "1"}\n', "line 2: column 'a': text here, an integer in the lines before"),
        (b'{"a": 1}\n{"a": true}\n', "line 2: column 'a': true or false here, an integer in the lines before"),
        (b'{"a": [1]}\n{"a": []}\n{"a": ["x"]}\n', "line 3: column 'a': a list of strings here, a list of integers in"),
        (b'{"a": "x"}\n{"a": null}\n', "line 2: column 'a': null; every row has a value"),
        (b'{"a": {"b": 1}}', "line 1: column 'a': an object; write its values as columns"),
        (b'{"a": [1.5]}', "line 1: column 'a': a list must be of strings alone or of integers alone"),
        (b'{"a": [[1]]}', "line 1: column 'a': a list must be"),
        (b'{"a": ["x", 1]}', "line 1: column 'a': a list must be"),
        (b'{"a": [true]}', "line 1: column 'a': a list must be"),
        (b'{"a": ["x", null]}', "line 1: column 'a': a list must be"),
        (b'{"a": NaN}', "line 1: NaN is neither JSON nor a finite number"),
        (b'{"a": -Infinity}', "line 1: -Infinity is neither"),
        (b'{"a": 1.5}\n{"a": 1e999}', "line 2: column 'a': a number too large"),
        (b'{"a": 9223372036854775808}', "line 1: column 'a': an integer too large for 64 bits"),
        (b'{"a": [9223372036854775808]}', "line 1: column 'a': an integer too large"),
        (b'{"a": "\\ud800"}', "line 1: column 'a': half of a surrogate pair"),
        (b'{"a": ["\\ud800"]}', "line 1: column 'a': half of a surrogate pair"),
        (json.dumps({str(number): 1 for number in range(1001)}).encode(), "must have 1 to 1000 columns, not 1001"),
    ],
)
def test_malformed_jsonl(content: bytes, told: str) -> None:
    assert fault(content, JSONL).startswith(told), fault(content, JSONL)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\n", "the file is empty"),
        (b"a,b\n", "no rows"),
        (b"a,b\n1,2\n1,\xff\n", "line 3: not UTF-8"),
        (b"a,b\n1\n", "line 2: 1 fields, the header has 2"),
        (b'a,b\n"x\ny",2\n1,2,3\n', "line 4: 3 fields, the header has 2"),
        (b"a,b\n\n1,2\n", "line 2: empty"),
        (b"a,b,a\n1,2,3\n", "column 'a' occurs twice"),
        (b"a,\n1,2\n", "the name of column 2, '', must be"),
        (b'a,b\n1,"2\n', "line 2: not CSV: unexpected end of data"),
        (b'a,b\n1,"2"x\n', "line 2: not CSV: "),
        (b"a,b\r1,2\r3,4\r", "line 1: not CSV: "),
        (b"a,b\n1,x\n,y\n3,z\n", "line 3: column 'a': no value among numbers"),
        (b"a,b\n1,x\n2,y\nNULL,z\n", "line 4: column 'a': no value among numbers"),
        (b"a,b\n1.5,x\nnan,y\n", "line 3: column 'a': NaN or infinity among numbers"),
        (b"a,b\n1.5,x\n-Inf,y\n", "line 3: column 'a': NaN or infinity among numbers"),
        (b"a,b\n1.5,x\n1e999,y\n", "line 3: column 'a': a number too large"),
        (b"a" * 200 + b"\n1\n", "the name of column 1, "),
    ],
)
def test_malformed_csv(content: bytes, told: str) -> None:
    assert fault(content, CSV).startswith(told), fault(content, CSV)


GOOD_PARQUET = parquet({"a": ["text"] * 100})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"not parquet at all", "not Parquet, or truncated: "),
        (GOOD_PARQUET[:-1], "not Parquet, or truncated: "),
        (GOOD_PARQUET[: len(GOOD_PARQUET) // 2], "not Parquet, or truncated: "),
        (GOOD_PARQUET[:4] + GOOD_PARQUET[40:], "not Parquet, or truncated: "),
        (b"PAR1" + b"\xff" * 100 + b"PAR1", "not Parquet, or truncated: "),
        (parquet({"a": pa.array([], pa.string())}), "no rows"),
        (parquet({}), "no rows"),
        (parquet({"a": [1, None, 3]}), "row 2: column 'a' is null"),
        (parquet({"a": ["x", None]}), "row 2: column 'a' is null"),
        (parquet({"a": [["x"], None]}), "row 2: column 'a' is null"),
        (parquet({"a": [["x"], ["y", None]]}), "row 2: column 'a' holds a null in its list"),
        (parquet({"a": pa.nulls(2)}), "column 'a': type null is not among"),
        (parquet({"a": [1.0, float("nan")]}), "row 2: column 'a' is NaN or infinity"),
        (parquet({"a": pa.array([1.0, float("inf")], pa.float32())}), "row 2: column 'a' is NaN or infinity"),
        (parquet({"a": [b"bytes"]}), "column 'a': type binary is not among"),
        (parquet({"a": [{"b": 1}]}), "column 'a': type struct<b: int64> is not among"),
        (parquet({"a": [[1.5]]}), "column 'a': type list<element: double> is not among"),
        (parquet({"a": [[[1]]]}), "column 'a': type list<element: list<"),
        (parquet({"a": [[True]]}), "column 'a': type list<element: bool> is not among"),
        (parquet({"a": pa.array([1], pa.timestamp("ms"))}), "column 'a': type timestamp[ms] is not among"),
        (parquet({"a": pa.array([1], pa.decimal128(5))}), "column 'a': type decimal128(5, 0) is not among"),
        (parquet({"a": pa.array(["x"]).dictionary_encode()}), "column 'a': type dictionary<"),
        (parquet({"a": pa.array([2**63], pa.uint64())}), "column 'a': "),
        (parquet({"a": pa.array([[2**63]], pa.list_(pa.uint64()))}), "column 'a': "),
        (parquet({"a": pa.array([b"\xff"]).cast(pa.binary()).view(pa.string())}), "column 'a': holds text that is not UTF-8"),
    ],
)
def test_malformed_parquet(content: bytes, told: str) -> None:
    assert fault(content, PARQUET).startswith(told), fault(content, PARQUET)


def test_parquet_columns_of_one_name() -> None:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), file)
    assert fault(file.getvalue(), PARQUET) == "column 'a' occurs twice"


class Harmful:
    """Would run when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return pytest.fail, ("it was unpickled",)


OBJECTS = npy(np.array([Harmful()], dtype=object), allow_pickle=True)
GOOD_NPZ = npz(a=np.arange(1000))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"not npz at all", "not NPZ, or truncated: "),
        (GOOD_NPZ[:-1], "not NPZ, or truncated: "),
        (GOOD_NPZ[: len(GOOD_NPZ) // 2], "not NPZ, or truncated: "),
        (GOOD_NPZ.replace(npy(np.arange(1000))[-80:], b"\1" * 80), "not NPZ, or truncated: Bad CRC-32"),
        (zipped({}), "the file is empty: it holds no array"),
        (zipped({"a.npy": OBJECTS}), "array 'a': holds Python objects"),
        (zipped({"a.npy": pickle.dumps(Harmful())}), "array 'a': not an array"),
        (pickle.dumps(Harmful()), "not NPZ, or truncated: "),
        (npy(np.arange(3)), "not NPZ, or truncated: "),
        (npz(a=np.arange(3), b=np.arange(4)), "arrays have first dimensions of different lengths: a 3, b 4"),
        (npz(a=np.float32([1, np.nan])), "array 'a': row 2 holds NaN or infinity"),
        (npz(a=np.float32([[1, 2], [3, 4], [5, -np.inf]])), "array 'a': row 3 holds NaN or infinity"),
        (npz(a=np.arange(0)), "array 'a': no rows"),
        (npz(a=np.int64(1)), "array 'a': shape () is not the rows"),
        (npz(a=np.zeros((2, 0))), "array 'a': shape (2, 0) has no elements in a row"),
        (npz(a=np.zeros((1,) * 9)), "array 'a': shape (1, 1, 1, 1, 1, 1, 1, 1, 1) is not the rows"),
        (npz(a=np.array([["x"]])), "array 'a': shape (1, 1) is not the rows"),
        (npz(a=np.array([b"bytes"])), "array 'a': type |S5 is not among"),
        (npz(a=np.complex64([1])), "array 'a': type complex64 is not among"),
        (npz(a=np.longdouble([1])), "array 'a': type float128 is not among"),
        (npz(a=np.array(["2020-01-01"], "M8[D]")), "array 'a': type datetime64[D] is not among"),
        (npz(a=np.array([(1,)], [("x", "i4")])), "array 'a': type [('x', '<i4')] is not among"),
        (npz(a=np.uint64([2**63])), "array 'a': holds an integer too large"),
        (npz(a=np.array(["\ud800"])), "array 'a': row 1 is no text"),
        (zipped({"a.npy": npy_header("'<U1'", "(1,)", b"\xff\xff\xff\x7f")}), "array 'a': row 1 is no text"),
        (zipped({"a.npy": npy_header("'<f8'", "(2,)", b"12345678")}), "array 'a': its header declares"),
        (zipped({"a.npy": npy_header("'<f8'", "(1,)", b"1234567890")}), "array 'a': its header declares"),
        (zipped({"a.npy": npy_header("'<f8'", "(-1,)")}), "array 'a': "),
        (zipped({"a.npy": npy_header("'<f8'", "(True,)", b"12345678")}), "array 'a': shape (True,) has no"),
        (zipped({"a.npy": npy_header("'<f8'", "(10**30,)")}), "array 'a': not an array"),
        (zipped({"a.npy": npy_header("'<f8'", f"({10**30},)")}), "array 'a': "),
        (zipped({"a.npy": npy_header("__import__('os')", "(1,)")}), "array 'a': not an array"),
        (zipped({"a.npy": b"\x93NUMPY\x03\x00" + npy([1])[8:]}), "array 'a': format version 3.0 is not read"),
        (zipped({"a.npy": b""}), "array 'a': not an array"),
        (zipped({"a.txt": npy([1])}), "'a.txt': an array's file is a plain name that ends with .npy"),
        (zipped({"../a.npy": npy([1])}), "'../a.npy': an array's file is a plain name"),
        (zipped({"/etc/a.npy": npy([1])}), "'/etc/a.npy': an array's file is a plain name"),
        (zipped({"a/b.npy": npy([1])}), "'a/b.npy': an array's file is a plain name"),
        (zipped({".npy": npy([1])}), "'.npy': an array's file is a plain name"),
        (zipped({f"a{number}.npy": b"" for number in range(1001)}), "must have 1 to 1000 columns, not 1001"),
    ],
)
def test_malformed_npz(content: bytes, told: str) -> None:
    assert fault(content, NPZ).startswith(told), fault(content, NPZ)


def test_npz_arrays_of_one_name() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", npy([1]))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", npy([1]))
    assert fault(file.getvalue(), NPZ) == "column 'a' occurs twice"


def test_an_encrypted_npz() -> None:
    content = bytearray(zipped({"a.npy": npy([1])}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert fault(bytes(content), NPZ) == "array 'a': encrypted"


@pytest.mark.parametrize("members", [1, 40])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(zipped({f"a{number}.npy": npy(np.zeros(1000)) for number in range(members)}, zipfile.ZIP_DEFLATED))
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:  # what the directory says of the unpacked size
        content[at + 24 : at + 28] = (3_000_000_000 // members + (100_000_000 if members > 1 else 0)).to_bytes(4, "little")
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("it was unpacked"))
    assert "it would grow to" in fault(bytes(content), NPZ)


def test_a_member_that_grows_beyond_what_it_declares_is_refused() -> None:
    content = bytearray(zipped({"a.npy": npy(np.zeros(100_000))}, zipfile.ZIP_DEFLATED))
    at = content.index(b"PK\x01\x02")
    declared = npy(np.zeros(10))
    content[at + 24 : at + 28] = len(declared).to_bytes(4, "little")
    assert fault(bytes(content), NPZ).startswith("not NPZ, or truncated: Bad CRC-32")


def test_a_parquet_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.optimization.datasets.parsing.FREE_BYTES", 100_000)
    content = parquet({"a": [0.5] * 200_000}, compression="zstd", use_dictionary=False)
    assert len(content) < 20_000
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("it was unpacked"))
    assert fault(content, PARQUET).startswith("it would grow to 16")
