"""Parsing in a child process: its limits hold, and an end without an answer is the file's fault."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.optimization.datasets.parsing import BadDataset
from services.optimization.uploads import limited_child
from services.optimization.uploads.dataset_inspection import inspect_file
from services.repository.dataset_manifest import DatasetFormat

ROOT = Path(__file__).parents[2]

# Imported before the limit, so that it is the file alone that asks for too much.
READER = """
import sys
from pathlib import Path
from services.optimization.datasets import parquet as dataset_parquet
from services.optimization.datasets import parsing as dataset_parsing
from services.optimization.uploads import limited_child

limited_child.limit_self(1 << 30)
try:
    dataset_parsing.read_table(Path(sys.argv[1]), "parquet")
except MemoryError:
    print("MemoryError")
"""


def test_a_parquet_file_that_hides_its_size_meets_the_limit(tmp_path: Path) -> None:
    """One long text, repeated by its number in a dictionary: a few hundred bytes that the file itself calls a megabyte."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), ["x" * 1_000_000])
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"a": texts}), path, store_schema=False, compression="zstd")
    assert path.stat().st_size < 1000
    command = [sys.executable, "-c", READER, str(path)]
    done = subprocess.run(command, cwd=ROOT, env={"ARROW_DEFAULT_MEMORY_POOL": "system"}, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("MemoryError\n", "")


def test_an_answer_is_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    module = "services.optimization.uploads.dataset_inspection"
    assert limited_child.ask(module, "contents", str(tmp_path / "a.csv"), "csv")["contents"]["rows"] == 1


def test_a_child_that_fails_tells_its_last_line() -> None:
    with pytest.raises(limited_child.NoAnswer, match=r"ended without an answer.*No module named services\.nowhere"):
        limited_child.ask("services.nowhere")


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    monkeypatch.setattr(limited_child, "WALL_SECONDS", 0.001)
    with pytest.raises(BadDataset, match=r"parsing took longer than 0\.001 s"):
        inspect_file(tmp_path / "a.csv", DatasetFormat.CSV)
