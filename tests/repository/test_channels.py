"""Channels: small files, whole or as they were."""

import os
import tempfile
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.repository.channels import HISTORY, Channels, NoEarlierVersion


@pytest.fixture
def channels(tmp_path: Path) -> Channels:
    return Channels(tmp_path / "channels")


def test_before_the_first_there_is_none(channels: Channels) -> None:
    assert channels.read() == {}
    assert channels.changed_ns() == 0
    with pytest.raises(NoEarlierVersion):
        channels.roll_back("stable")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=HISTORY - 1), st.data())
def test_rolling_back_undoes_pointing(versions: list[int], data: st.DataObject) -> None:
    moves = [version for version, _ in groupby(versions)]
    back = data.draw(st.integers(0, len(moves) - 1))
    with tempfile.TemporaryDirectory() as folder:
        channels = Channels(Path(folder))
        for version in versions:
            channels.point("stable", version)
        assert channels.read() == {"stable": moves[-1]}
        assert [channels.roll_back("stable") for _ in range(back)] == moves[-2 : -2 - back : -1]


def test_the_oldest_is_forgotten(channels: Channels) -> None:
    for version in range(1, HISTORY + 10):
        channels.point("stable", version)
    for _ in range(HISTORY - 1):
        last = channels.roll_back("stable")
    assert last == 10
    with pytest.raises(NoEarlierVersion):
        channels.roll_back("stable")


def test_moving_is_seen_and_staying_is_not(channels: Channels) -> None:
    channels.point("stable", 1)
    os.utime(channels.folder, ns=(0, 0))
    channels.point("stable", 1)
    assert channels.changed_ns() == 0
    channels.point("stable", 2)
    assert channels.changed_ns() > 0


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b"3", b"null", b'{"versions": 3}', b'{"versions": ["3"]}', b'{"versions": []}']
)
def test_a_corrupt_file_is_as_if_it_were_not_there(channels: Channels, content: bytes) -> None:
    channels.point("stable", 1)
    channels.point("canary", 2)
    (channels.folder / "stable").write_bytes(content)
    assert channels.read() == {"canary": 2}
    channels.point("stable", 3)
    assert channels.read() == {"canary": 2, "stable": 3}


def test_what_a_killed_writer_left_is_no_channel(channels: Channels) -> None:
    channels.point("stable", 1)
    (channels.folder / ".stable.1234.abcdef").write_bytes(b'{"versions": [9]}')
    assert channels.read() == {"stable": 1}


def test_a_write_that_fails_leaves_the_old_content(channels: Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    channels.point("stable", 1)

    def fail(_: int) -> None:
        raise OSError("the disk broke")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="broke"):
            channels.point("stable", 2)
    assert channels.read() == {"stable": 1}
    assert [path.name for path in channels.folder.iterdir()] == ["stable"]
