"""Versions: sealed whole or not at all, never edited, never numbered twice."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.repository.channels import NoEarlierVersion
from services.repository.manifest import Manifest, Signature
from services.repository.references import BadName
from services.repository.store import Damaged, InUse, Origin, Repository, UnknownModel

ROOT = Path(__file__).parents[2]
Seal = Callable[..., Manifest]

SEALER = """
import os, signal, sys
from pathlib import Path
from services.repository.manifest import Manifest, Signature
from services.repository.store import Origin, Repository

root, signature, count, fault = sys.argv[1:]
if fault:  # the named call never comes back
    def stop(*_):
        print("here", flush=True)
        signal.pause()
    Path.rename = stop
repository = Repository(Path(root))
for number in range(int(count)):
    with repository.staging() as staged:
        (staged / "model.onnx").write_bytes(b"%d %d" % (os.getpid(), number))
        print(repository.seal(staged, "m", Signature.model_validate_json(signature), Origin()).version, flush=True)
"""


def sealer(repository: Repository, signature: Signature, count: int, fault: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SEALER, str(repository.root), signature.model_dump_json(), str(count), fault]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def visible(repository: Repository) -> list[str]:
    """Everything in the repository that a reader could come upon, staging and empty folders aside."""
    models = repository.root / "models"
    return sorted(path.relative_to(models).as_posix() for path in models.rglob("*") if path.is_file())


def test_what_is_sealed_is_found(repository: Repository, seal: Seal) -> None:
    origin = Origin(parent="m@1", job="j", upload_id="u", recipe={"steps": ["a"]}, report={"size": 1})
    first, second = seal(), seal(content=b"other", origin=origin)
    assert (first.reference, second.reference) == ("m@1", "m@2")
    assert repository.names() == ["m"]
    assert repository.versions("m") == [1, 2]
    assert repository.manifest("m", 2) == second
    assert Repository(repository.root).manifest("m", 2) == second
    assert repository.find("m", upload_id="u") == second == repository.find("m", job="j")
    assert repository.find("m", upload_id="j") is None
    assert repository.find("nobody", job="j") is None
    assert repository.resolve("m@1").folder.joinpath("model.onnx").read_bytes() == b"weights"
    assert list((repository.root / "staging").iterdir()) == []
    repository.verify("m", 1)


def test_the_digest_follows_content_and_signature_alone(seal: Seal, signature: Signature) -> None:
    first = seal()
    assert seal(origin=Origin(job="j", report={"a": 1})).digest == first.digest
    assert seal("other").digest == first.digest
    assert seal(content=b"other").digest != first.digest
    assert seal(like=signature.model_copy(update={"max_tokens": 7})).digest != first.digest


def test_channels_lead_to_versions(repository: Repository, seal: Seal) -> None:
    seal(), seal()
    assert repository.set_channel("m", "stable", 1).version == 1
    assert repository.resolve("m").channel == "stable"
    repository.set_channel("m", "stable", 2)
    assert repository.resolve("m").manifest.version == 2
    assert repository.resolve("m@1").channel == ""
    assert repository.roll_back("m", "stable").version == 1
    with pytest.raises(NoEarlierVersion):
        repository.roll_back("m", "stable")
    assert repository.channels("m") == {"stable": 1}


@pytest.mark.parametrize("reference", ["m@3", "m:canary", "nobody", "nobody@1", "m"])
def test_what_is_not_there_is_unknown(repository: Repository, seal: Seal, reference: str) -> None:
    seal()
    with pytest.raises(UnknownModel, match="no "):
        repository.resolve(reference)


def test_changes_to_what_is_not_there_are_refused_and_leave_nothing(repository: Repository, seal: Seal) -> None:
    seal()
    before = visible(repository)
    for change in (
        lambda: repository.set_channel("m", "stable", 2),
        lambda: repository.set_channel("nobody", "stable", 1),
        lambda: repository.roll_back("m", "stable"),
        lambda: repository.roll_back("nobody", "stable"),
        lambda: repository.delete("m", 2),
        lambda: repository.delete("nobody", 1),
    ):
        with pytest.raises(UnknownModel):
            change()
    for refused in (lambda: repository.set_channel("m", "..", 1), lambda: repository.delete("../m", 1), lambda: repository.versions("..")):
        with pytest.raises(BadName):
            refused()
    assert visible(repository) == before
    assert repository.names() == ["m"]


# Deleting


def test_a_number_is_never_given_again(repository: Repository, seal: Seal) -> None:
    seal(), seal()
    repository.delete("m", 2)
    assert repository.versions("m") == [1]
    assert seal().version == 3
    repository.delete("m", 3)
    repository.delete("m", 1)
    assert repository.names() == []
    assert seal().version == 4
    assert Repository(repository.root).versions("m") == [4]


def test_a_version_in_use_stays(repository: Repository, seal: Seal) -> None:
    seal()
    repository.set_channel("m", "stable", 1)
    repository.set_channel("m", "canary", 1)
    with pytest.raises(InUse, match="canary, stable"):
        repository.delete("m", 1)
    assert repository.versions("m") == [1]


def test_no_channel_rolls_back_to_what_is_gone(repository: Repository, seal: Seal) -> None:
    seal(), seal(), seal()
    for version in (1, 2, 1, 3):
        repository.set_channel("m", "stable", version)
    repository.delete("m", 2)
    assert repository.roll_back("m", "stable").version == 1
    with pytest.raises(NoEarlierVersion):  # not from version 1 to version 1
        repository.roll_back("m", "stable")


def test_a_reader_of_another_process_sees_that_a_version_is_gone(repository: Repository, seal: Seal) -> None:
    seal()
    reader = Repository(repository.root)
    assert reader.resolve("m@1").manifest.version == 1
    repository.delete("m", 1)
    with pytest.raises(UnknownModel):
        reader.resolve("m@1")


# Many writers


def test_threads_that_seal_at_once_get_versions_of_their_own(repository: Repository, seal: Seal) -> None:
    start = threading.Barrier(8)

    def work(thread: int) -> list[int]:
        start.wait()
        return [seal(content=b"%d %d" % (thread, number)).version for number in range(4)]

    with ThreadPoolExecutor(8) as pool:
        numbers = [number for found in pool.map(work, range(8)) for number in found]
    assert sorted(numbers) == repository.versions("m") == list(range(1, 33))
    assert len({repository.manifest("m", version).digest for version in numbers}) == 32


def test_processes_that_seal_at_once_get_versions_of_their_own(repository: Repository, signature: Signature) -> None:
    processes = [sealer(repository, signature, 10) for _ in range(3)]
    numbers = [int(line) for process in processes for line in process.communicate(timeout=60)[0].split()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(numbers) == repository.versions("m") == list(range(1, 31))
    for version in numbers:
        repository.verify("m", version)


def test_deleting_while_others_seal_gives_no_number_twice(repository: Repository, seal: Seal) -> None:
    start = threading.Barrier(4)

    def work(_: int) -> list[int]:
        start.wait()
        found = []
        for _ in range(10):
            found.append(seal().version)
            repository.delete("m", found[-1])
        return found

    with ThreadPoolExecutor(4) as pool:
        numbers = [number for found in pool.map(work, range(4)) for number in found]
    assert sorted(numbers) == list(range(1, 41))


def test_channels_moved_at_once_lose_no_history(repository: Repository, seal: Seal) -> None:
    for _ in range(6):
        seal()
    start = threading.Barrier(6)

    def move(version: int) -> None:
        start.wait()
        repository.set_channel("m", "stable", version)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(move, range(1, 7)))
    seen = [repository.resolve("m").manifest.version]
    seen += [repository.roll_back("m", "stable").version for _ in range(5)]
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]


# Faults


def test_a_killed_sealer_leaves_nothing_visible(repository: Repository, seal: Seal, signature: Signature) -> None:
    seal()
    before = visible(repository)
    with sealer(repository, signature, 1, "rename") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    assert visible(repository) == before
    assert repository.versions("m") == [1]
    assert list((repository.root / "staging").iterdir()) != []
    repository.sweep()
    assert not (repository.root / "staging").exists()
    assert seal().version == 2  # nor does it hold the lock


def test_a_full_disk_is_told_and_leaves_nothing_visible(repository: Repository, seal: Seal, monkeypatch: pytest.MonkeyPatch) -> None:
    seal()
    before = visible(repository)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            seal()
    assert visible(repository) == before
    assert list((repository.root / "staging").iterdir()) == []
    assert seal().version == 2


def test_a_file_over_the_systems_limit_leaves_nothing_visible(repository: Repository, seal: Seal) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            seal()  # the weights fit, the manifest does not
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert visible(repository) == []
    assert seal().version == 1


@pytest.mark.parametrize("target", ["/etc/passwd", "model.onnx", "nowhere"])
def test_links_are_refused(repository: Repository, signature: Signature, target: str) -> None:
    with repository.staging() as staged:
        (staged / "model.onnx").write_bytes(b"weights")
        (staged / "config.json").symlink_to(target)
        with pytest.raises(BadName, match=r"config\.json is not a plain file"):
            repository.seal(staged, "m", signature, Origin())
    assert repository.versions("m") == []


@pytest.mark.parametrize("name", [".hidden", "a b", "-rf"])
def test_files_of_hostile_names_are_refused(repository: Repository, signature: Signature, name: str) -> None:
    with repository.staging() as staged:
        (staged / name).write_bytes(b"")
        with pytest.raises(BadName):
            repository.seal(staged, "m", signature, Origin())
    assert repository.versions("m") == []


def test_a_sockets_or_pipes_folder_is_refused(repository: Repository, signature: Signature) -> None:
    with repository.staging() as staged:
        os.mkfifo(staged / "model.onnx")
        with pytest.raises(BadName, match="not a plain file"):
            repository.seal(staged, "m", signature, Origin())


@pytest.mark.parametrize("at", [0, 3, -1])
def test_a_flipped_byte_is_found(repository: Repository, seal: Seal, at: int) -> None:
    seal()
    path = repository.folder("m", 1) / "model.onnx"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"m@1: model\.onnx has digest"):
        repository.verify("m", 1)


def test_a_missing_file_and_a_broken_manifest_are_found(repository: Repository, seal: Seal) -> None:
    seal(), seal()
    (repository.folder("m", 1) / "model.onnx").unlink()
    with pytest.raises(Damaged, match=r"model\.onnx is missing"):
        repository.verify("m", 1)
    (repository.folder("m", 2) / "manifest.json").write_text(json.dumps({"name": "m"}))
    with pytest.raises(Damaged, match=r"manifest\.json does not parse"):
        Repository(repository.root).manifest("m", 2)
