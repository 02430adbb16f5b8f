"""Uploads: chunks in any order of files, resumed at will, and nothing finished that is not whole."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.repository.manifest import FileEntry
from services.repository.uploads import BadUpload, UnknownUpload, UploadLimits, Uploads, UploadTooLarge


def entry(path: str, content: bytes) -> FileEntry:
    return FileEntry(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "uploads", UploadLimits(max_bytes=1000, max_files=5))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.sampled_from(["a", "b.json", "c/d", "c/e/f"]), st.binary(max_size=40), min_size=1),
    st.lists(st.integers(0, 40), max_size=6),
    st.randoms(use_true_random=False),
)
def test_any_chunking_of_any_interleaving_arrives(files: dict[str, bytes], cuts: list[int], random: object) -> None:
    with tempfile.TemporaryDirectory() as root:
        uploads = Uploads(Path(root), UploadLimits(max_bytes=1000))
        entries = [entry(path, content) for path, content in files.items()]
        spans = {path: _spans(len(content), cuts) for path, content in files.items()}
        while any(spans.values()):
            path = random.choice(sorted(path for path in spans if spans[path]))  # type: ignore[attr-defined]
            begin, end = spans[path].pop(0)
            upload = uploads.begin("u", "m", entries)  # as after a break before every chunk
            upload.write(path, begin, files[path][begin:end])
        assert contents(uploads.begin("u", "m", entries).finish()) == files


def _spans(size: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive pieces; each begins a little before the end of the one before, since resending is allowed."""
    edges = sorted({0, size, *(cut for cut in cuts if cut < size)})
    return [(max(0, begin - 3), end) for begin, end in pairwise(edges)]


def test_a_broken_upload_goes_on(uploads: Uploads) -> None:
    files = [entry("a", b"abcdef"), entry("b", b"xyz")]
    uploads.begin("u", "m", files).write("a", 0, b"abcd")
    assert uploads.received_bytes("u") == {"a": 4}
    upload = uploads.begin("u", "m", files)
    with pytest.raises(BadUpload, match=r"chunk\.data: a: 4 of 6 bytes"):
        upload.finish()
    upload.write("a", 4, b"ef")
    upload.write("b", 0, b"xyz")
    assert contents(upload.finish()) == {"a": b"abcdef", "b": b"xyz"}
    uploads.forget("u")
    with pytest.raises(UnknownUpload):
        uploads.received_bytes("u")
    uploads.forget("u")


@pytest.mark.parametrize("upload_id", ["", "..", "a/b", ".", "a" * 65, "a\0", "a\n", "é", "header.json/.."])
def test_hostile_ids_are_refused(uploads: Uploads, upload_id: str) -> None:
    with pytest.raises(BadUpload, match=r"header\.upload_id"):
        uploads.begin(upload_id, "m", [entry("a", b"")])
    with pytest.raises(BadUpload, match=r"header\.upload_id"):
        uploads.received_bytes(upload_id)
    with pytest.raises(BadUpload, match=r"header\.upload_id"):
        uploads.forget(upload_id)


@pytest.mark.parametrize("path", ["..", "../a", "/a", "a/../b", ".a", "a/.b", "", "a//b", "manifest.json", "a\\..\\b"])
def test_hostile_paths_are_refused(uploads: Uploads, tmp_path: Path, path: str) -> None:
    with pytest.raises(BadUpload, match=r"header\.files\[1\]\.path"):
        uploads.begin("u", "m", [entry("b", b""), entry(path, b"")])
    assert not (tmp_path / "uploads").exists()


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b/c", "a/b"), ("a/b", "a")])
def test_paths_in_each_others_way_are_refused(uploads: Uploads, paths: tuple[str, str]) -> None:
    with pytest.raises(BadUpload, match=r"header\.files\[[01]\]\.path"):
        uploads.begin("u", "m", [entry(path, b"x") for path in paths])


def test_limits(uploads: Uploads) -> None:
    with pytest.raises(BadUpload, match=r"header\.files: must be 1 to 5 files, not 0"):
        uploads.begin("u", "m", [])
    with pytest.raises(BadUpload, match="not 6"):
        uploads.begin("u", "m", [entry(str(number), b"") for number in range(6)])
    with pytest.raises(UploadTooLarge, match="1001 bytes are over the limit of 1000"):
        uploads.begin("u", "m", [entry("a", b"x" * 500), entry("b", b"x" * 501)])
    assert uploads.begin("u", "m", [entry("a", b"x" * 1000)])


def test_chunks_that_do_not_fit_are_refused_and_written_nowhere(uploads: Uploads) -> None:
    upload = uploads.begin("u", "m", [entry("a", b"abcdef")])
    upload.write("a", 0, b"ab")
    for path, offset, data, fault in (
        ("b", 0, b"x", r"chunk\.path"),
        ("../a", 0, b"x", r"chunk\.path"),
        ("a", 3, b"x", "leaves a gap"),
        ("a", -1, b"x", "lie outside"),
        ("a", 2, b"cdefg", "lie outside"),
        ("a", 7, b"", "lie outside"),
    ):
        with pytest.raises(BadUpload, match=fault):
            upload.write(path, offset, data)
    assert uploads.received_bytes("u") == {"a": 2}


def test_a_wrong_digest_drops_that_file_alone(uploads: Uploads) -> None:
    files = [entry("a", b"abc"), entry("b", b"xyz")]
    upload = uploads.begin("u", "m", files)
    upload.write("a", 0, b"abc")
    upload.write("b", 0, b"xyZ")
    with pytest.raises(BadUpload, match=r"header\.files: b: digest is"):
        upload.finish()
    assert uploads.received_bytes("u") == {"a": 3}
    upload.write("b", 0, b"xyz")
    assert contents(upload.finish()) == {"a": b"abc", "b": b"xyz"}


@pytest.mark.parametrize(("name", "content"), [("other", b"abc"), ("m", b"abd"), ("m", b"abcd")])
def test_one_id_is_one_upload(uploads: Uploads, name: str, content: bytes) -> None:
    uploads.begin("u", "m", [entry("a", b"abc")]).write("a", 0, b"ab")
    with pytest.raises(BadUpload, match=r"header\.upload_id: 'u' was begun with another name or other files"):
        uploads.begin("u", name, [entry("a", content)])
    assert uploads.received_bytes("u") == {"a": 2}


def test_only_uploads_that_nothing_touched_are_swept(uploads: Uploads, tmp_path: Path) -> None:
    for upload_id in ("old", "growing"):
        uploads.begin(upload_id, "m", [entry("a", b"abc")]).write("a", 0, b"a")
        for path in (tmp_path / "uploads" / upload_id).rglob("*"):
            os.utime(path, (1000, 1000))
        os.utime(tmp_path / "uploads" / upload_id, (1000, 1000))
    os.utime(tmp_path / "uploads" / "growing" / "files" / "a", (3000, 3000))
    uploads.sweep(older_than_epoch_s=2000)
    assert uploads.received_bytes("growing") == {"a": 1}
    with pytest.raises(UnknownUpload):
        uploads.received_bytes("old")
