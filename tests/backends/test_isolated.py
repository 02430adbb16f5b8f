"""A backend in a real child process: killed, stopped, orphaned, closed; and the frames between the two."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services import backends
from services.backends import BackendDied, LoadError, Options, RunError
from services.backends.datatypes import DATATYPES
from services.backends.frames import BrokenFrame, receive, send
from services.backends.isolated import IsolatedBackend
from tests.inference.conftest import PLAIN, plain_model

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
OUTPUTS = ["doubled", "total"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_model(tmp_path_factory.mktemp("isolated") / "plain")


@pytest.fixture
def backend(folder: Path) -> Iterator[IsolatedBackend]:
    loaded = IsolatedBackend(folder, PLAIN, threads=1)
    yield loaded
    loaded.close()


def is_there(pid: int) -> bool:
    """Also as a zombie."""
    return Path(f"/proc/{pid}").exists()


def test_it_answers_as_the_backend_in_this_process(backend: IsolatedBackend, folder: Path) -> None:
    here = backends.load(folder, PLAIN, threads=1)
    assert backend.name == here.name
    wanted = here.run(X, OUTPUTS)
    for _ in range(3):
        found = backend.run(X, OUTPUTS)
        assert list(found) == OUTPUTS
        for name in OUTPUTS:
            np.testing.assert_array_equal(found[name], wanted[name])
            assert found[name].dtype == wanted[name].dtype
            assert found[name].flags.writeable


def test_a_failing_run_says_why_and_the_next_one_succeeds(backend: IsolatedBackend) -> None:
    for inputs, why in (({}, "x"), ({"x": np.ones((2, 4), np.float32)}, "x"), ({"x": np.array([["text"]])}, "dtype")):
        with pytest.raises(RunError, match=why) as failed:
            backend.run(inputs, OUTPUTS)
        assert not isinstance(failed.value, BackendDied)
    assert backend.run(X, ["total"])["total"].tolist() == [3.0, 12.0]


def test_several_threads_get_their_own_answers(backend: IsolatedBackend) -> None:
    def run(number: int) -> float:
        return float(backend.run({"x": np.full((1, 3), number, np.float32)}, ["total"])["total"][0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(64))) == [3.0 * number for number in range(64)]


def test_large_batches_pass(backend: IsolatedBackend) -> None:
    rows = np.ones((200_000, 3), np.float32)  # far more than a socket holds
    assert backend.run({"x": rows}, ["doubled"])["doubled"].sum() == 2 * rows.size


def test_a_model_that_cannot_be_loaded_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"model\.onnx"):
        IsolatedBackend(tmp_path, PLAIN, threads=1)


def test_a_killed_child_is_told_reaped_and_dead_for_good(backend: IsolatedBackend) -> None:
    dead = threading.Event()
    backend.when_dead(dead.set)
    os.kill(backend.pid, signal.SIGKILL)
    assert dead.wait(WAIT_S)
    assert not is_there(backend.pid)
    for _ in range(2):
        with pytest.raises(BackendDied, match="SIGKILL"):
            backend.run(X, OUTPUTS)
    again = threading.Event()
    backend.when_dead(again.set)
    assert again.is_set()


def test_a_stopped_child_hangs_its_run_until_it_is_closed(backend: IsolatedBackend) -> None:
    dead = threading.Event()
    backend.when_dead(dead.set)
    os.kill(backend.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, backend.pid, os.WSTOPPED | os.WNOWAIT)
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(backend.run, X, OUTPUTS)
        assert not hanging.done()
        backend.close()
        with pytest.raises((BackendDied, RunError)):
            hanging.result(WAIT_S)
    assert not is_there(backend.pid)
    assert not dead.is_set()  # it was closed; that is no death


def test_closed(backend: IsolatedBackend) -> None:
    backend.close()
    backend.close()
    assert not is_there(backend.pid)
    with pytest.raises(RunError, match="closed"):
        backend.run(X, OUTPUTS)


PARENT = """
import sys
from pathlib import Path
from services.backends.isolated import IsolatedBackend
from services.repository.manifest import Signature
print(IsolatedBackend(Path(sys.argv[1]), Signature.model_validate_json(sys.argv[2]), threads=1).pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_no_child_outlives_its_parent(folder: Path, stopped: bool) -> None:
    command = [sys.executable, "-c", PARENT, str(folder), PLAIN.model_dump_json()]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        watched = os.pidfd_open(pid)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
    try:
        assert select.select([watched], [], [], WAIT_S)[0]  # readable once it has ended
    finally:
        os.close(watched)


def test_it_is_bound_to_its_cores(folder: Path) -> None:
    core = max(os.sched_getaffinity(0))
    pinned = IsolatedBackend(folder, PLAIN, threads=1, options=Options(cores=(core,)))
    assert os.sched_getaffinity(pinned.pid) == {core}
    pinned.close()


# Frames


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


SHAPES = arrays.array_shapes(min_dims=0, min_side=0)
ARRAYS = st.sampled_from(sorted(DATATYPES.values())).flatmap(lambda dtype: arrays.arrays(dtype, SHAPES))


@given(st.dictionaries(st.text(max_size=8), ARRAYS, max_size=4), st.dictionaries(st.sampled_from("abc"), st.integers() | st.text()))
def test_what_is_sent_is_received(sent: dict[str, np.ndarray], header: dict[str, object]) -> None:
    one, other = socket.socketpair()
    with one, other:
        send(one, header, sent)
        found_header, found = receive(other)
    assert found_header == header
    assert list(found) == list(sent)
    for name, array in sent.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_slices_are_sent_as_they_look(ends: tuple[socket.socket, socket.socket]) -> None:
    array = np.arange(24).reshape(4, 6).T[::2]
    send(ends[0], {}, {"a": array})
    np.testing.assert_array_equal(receive(ends[1])[1]["a"], array)


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"\x05\x00",
        b"\xff\xff\xff\xff",
        b"\x02\x00\x00\x00{}",
        b"\x02\x00\x00\x00\xff\xfe",
        b'\x1b\x00\x00\x00{"arrays":[["a","|O",[1]]]}',
        b'\x1c\x00\x00\x00{"arrays":[["a","|i1",[-1]]]}',
        b'\x1b\x00\x00\x00{"arrays":[["a","|i1",[5]]]}123',
        b'\x0c\x00\x00\x00{"arrays":7}',
    ],
)
def test_what_is_no_frame_is_refused(ends: tuple[socket.socket, socket.socket], written: bytes) -> None:
    ends[0].sendall(written)
    ends[0].shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenFrame):
        receive(ends[1])


def test_objects_are_never_sent(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(ValueError, match="dtype"):
        send(ends[0], {}, {"a": np.array([object()])})
    ends[0].shutdown(socket.SHUT_WR)
    assert ends[1].recv(1) == b""
