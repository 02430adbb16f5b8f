"""Datasets: sealed whole or not at all, newest by name, never numbered twice."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.repository.dataset_manifest import Column, ColumnKind, Contents, DatasetFormat, DatasetManifest
from services.repository.datasets import Datasets, UnknownDataset, parse_reference
from services.repository.references import BadName
from services.repository.store import Repository
from services.repository.versions import Damaged

ROOT = Path(__file__).parents[2]
CONTENTS = Contents(rows=2, columns=(Column(name="x", kind=ColumnKind.ARRAY, dtype="float32", shape=(3, 4)),))
Seal = Callable[..., DatasetManifest]

SEALER = """
import signal, sys
from pathlib import Path
from services.repository.dataset_manifest import Contents, DatasetFormat
from services.repository.datasets import Datasets

def stop(*_):
    print("here", flush=True)
    signal.pause()

Path.rename = stop
datasets = Datasets(Path(sys.argv[1]))
with datasets.staging() as staged:
    (staged / "data.csv").write_bytes(b"a")
    datasets.seal(staged, "d", DatasetFormat.CSV, Contents.model_validate_json(sys.argv[2]))
"""


@pytest.fixture
def datasets(tmp_path: Path) -> Datasets:
    return Datasets(tmp_path)


@pytest.fixture
def seal(datasets: Datasets) -> Seal:
    def make(name: str = "d", content: bytes = b"rows", form: DatasetFormat = DatasetFormat.JSONL, upload_id: str = "") -> DatasetManifest:
        with datasets.staging() as staged:
            (staged / form.file_name).write_bytes(content)
            return datasets.seal(staged, name, form, CONTENTS, upload_id)

    return make


def visible(root: Path) -> list[str]:
    return sorted(path.relative_to(root / "datasets").as_posix() for path in (root / "datasets").rglob("*") if path.is_file())


def test_what_is_sealed_is_found(datasets: Datasets, seal: Seal, tmp_path: Path) -> None:
    first, second = seal(), seal(content=b"other", form=DatasetFormat.NPZ, upload_id="u")
    assert (first.reference, second.reference) == ("d@1", "d@2")
    assert (second.rows, second.columns, second.file.size_bytes) == (2, CONTENTS.columns, 5)
    assert (datasets.names(), datasets.versions("d")) == (["d"], [1, 2])
    assert Datasets(tmp_path).manifest("d", 2) == second
    assert datasets.find("d", "u") == second
    assert datasets.find("d", "v") is None
    assert datasets.find("nobody", "u") is None
    datasets.verify("d", 1)


def test_a_name_is_its_newest_version(datasets: Datasets, seal: Seal) -> None:
    seal(content=b"1"), seal(content=b"2"), seal(content=b"3")
    assert datasets.resolve("d").path.read_bytes() == b"3"
    assert datasets.resolve("d@2").path.read_bytes() == b"2"
    datasets.delete("d", 3)
    assert datasets.resolve("d").manifest.version == 2


def test_the_digest_follows_format_and_content_alone(seal: Seal) -> None:
    first = seal()
    assert seal("other", upload_id="u").digest == first.digest
    assert seal(content=b"other").digest != first.digest
    assert seal(form=DatasetFormat.CSV).digest != first.digest


@pytest.mark.parametrize("reference", ["d@2", "nobody", "nobody@1"])
def test_what_is_not_there_is_unknown(datasets: Datasets, seal: Seal, reference: str) -> None:
    seal()
    with pytest.raises(UnknownDataset, match=r"^no (dataset|version 2 of dataset)"):
        datasets.resolve(reference)


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("", "dataset name ''"),
        ("../d", "dataset name"),
        ("@1", "dataset name ''"),
        ("d@", "version"),
        ("d@0", "version"),
        ("d@1:a", "version"),
        ("d:stable", "no channels"),
        ("d:", "no channels"),
    ],
)
def test_a_bad_reference_is_refused(datasets: Datasets, reference: str, fault: str) -> None:
    with pytest.raises(BadName, match=fault):
        datasets.resolve(reference)


def test_references_are_parsed() -> None:
    assert (parse_reference("a.b-c@12"), parse_reference("a")) == (("a.b-c", 12), ("a", None))


def test_models_and_datasets_do_not_meet(datasets: Datasets, seal: Seal, tmp_path: Path) -> None:
    seal("same")
    repository = Repository(tmp_path)
    assert repository.names() == []
    with datasets.staging() as staged:
        assert staged.parent == tmp_path / "staging"
        repository.sweep()
        assert not staged.exists()
    assert datasets.names() == ["same"]


def test_a_number_is_never_given_again(datasets: Datasets, seal: Seal, tmp_path: Path) -> None:
    seal(), seal()
    datasets.delete("d", 2)
    assert seal().version == 3
    for version in (1, 3):
        datasets.delete("d", version)
    assert datasets.names() == []
    with pytest.raises(UnknownDataset):
        datasets.resolve("d")
    assert seal().version == 4
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.parametrize(("name", "version"), [("d", 2), ("nobody", 1)])
def test_deleting_what_is_not_there_changes_nothing(datasets: Datasets, seal: Seal, tmp_path: Path, name: str, version: int) -> None:
    seal()
    before = visible(tmp_path)
    with pytest.raises(UnknownDataset):
        datasets.delete(name, version)
    assert visible(tmp_path) == before


def test_threads_that_seal_and_delete_at_once_get_numbers_of_their_own(datasets: Datasets, seal: Seal) -> None:
    start = threading.Barrier(4)

    def work(thread: int) -> list[int]:
        start.wait()
        found = []
        for number in range(6):
            found.append(seal(content=b"%d %d" % (thread, number)).version)
            if number % 2:
                datasets.delete("d", found[-1])
        return found

    with ThreadPoolExecutor(4) as pool:
        numbers = [number for found in pool.map(work, range(4)) for number in found]
    assert sorted(numbers) == list(range(1, 25))
    assert len(datasets.versions("d")) == 12
    for version in datasets.versions("d"):
        datasets.verify("d", version)


def test_a_killed_sealer_leaves_nothing_visible(seal: Seal, tmp_path: Path) -> None:
    seal()
    before = visible(tmp_path)
    command = [sys.executable, "-c", SEALER, str(tmp_path), CONTENTS.model_dump_json()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    assert visible(tmp_path) == before
    assert list((tmp_path / "staging").iterdir()) != []
    assert seal().version == 2  # nor does it hold the lock


@pytest.mark.parametrize("names", [[], ["data.csv"], ["data.jsonl", "more"], ["data.jsonl", "manifest.json"]])
def test_a_version_is_the_file_of_its_format_alone(datasets: Datasets, tmp_path: Path, names: list[str]) -> None:
    with datasets.staging() as staged:
        for name in names:
            (staged / name).write_bytes(b"x")
        with pytest.raises(BadName, match=r"one plain file data\.jsonl"):
            datasets.seal(staged, "d", DatasetFormat.JSONL, CONTENTS)
    assert visible(tmp_path) == []


def test_a_link_is_refused(datasets: Datasets) -> None:
    with datasets.staging() as staged:
        (staged / "data.jsonl").symlink_to("/etc/passwd")
        with pytest.raises(BadName, match="one plain file"):
            datasets.seal(staged, "d", DatasetFormat.JSONL, CONTENTS)


def test_damage_is_found(datasets: Datasets, seal: Seal, tmp_path: Path) -> None:
    seal(), seal()
    (datasets.folder("d", 1) / "data.jsonl").write_bytes(b"r0ws")
    with pytest.raises(Damaged, match=r"d@1: data\.jsonl has digest"):
        datasets.verify("d", 1)
    (datasets.folder("d", 2) / "manifest.json").write_text(json.dumps({"name": "d"}))
    with pytest.raises(Damaged, match="does not parse"):
        Datasets(tmp_path).resolve("d")
