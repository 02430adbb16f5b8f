"""A backend in a process of its own: it can be killed when it hangs, and a crash in native code is a failed run.

Isolation of faults, not a sandbox: the child has its parent's rights.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from services.backends import DEFAULT, Array, BackendDied, LoadError, Options, RunError
from services.backends.frames import BrokenFrame, Header, receive, send
from services.repository.manifest import Signature

LOAD_MOST_S, COMPILE_MOST_S = 300.0, 1800.0  # a load that takes longer hangs
KILL_MOST_S = 10.0  # a killed process that is still there cannot be waited for: the kernel is busy with it
_ROOT = Path(__file__).parents[2]


def _environment(threads: int) -> dict[str, str]:
    """The parent's but for our settings, which may hold credentials."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HONE_")}
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads)}
    return {**kept, **quiet, "PYTHONPATH": str(_ROOT)}


class _Child:
    """The process, a socket to it, and a pipe at whose end the kernel kills it. It is reaped as soon as it ends."""

    def __init__(self, threads: int) -> None:
        self.stream, far = socket.socketpair()
        near_end, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603  our own interpreter and module
                [sys.executable, "-P", "-m", "services.backends.isolated_child", str(far.fileno()), str(near_end)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(far.fileno(), near_end),
                env=_environment(threads),
                start_new_session=True,  # Ctrl-C in a terminal must not end it before its parent has drained
            )
        except OSError:
            self.stream.close()
            os.close(self._lifeline)
            raise
        finally:
            far.close()
            os.close(near_end)
        self._ended = threading.Event()
        self._closing = False
        self._told: Callable[[], None] | None = None
        self._guard = threading.Lock()
        threading.Thread(target=self._reap, name=f"reap-{self._process.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _reap(self) -> None:
        self._process.wait()
        with self._guard:
            self._ended.set()
            told = None if self._closing else self._told
        if told is not None:
            told()

    def when_dead(self, tell: Callable[[], None]) -> None:
        with self._guard:
            over = self._ended.is_set()
            self._told = tell
        if over:
            tell()

    def kill(self) -> None:
        with self._guard:
            self._closing = True
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with the compilers that it may have started
        self._ended.wait(KILL_MOST_S)

    def close(self) -> None:
        self.stream.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def how_it_ended(self) -> str:
        self._ended.wait(1.0)
        status = self._process.returncode
        if status is None:
            return "its process stopped answering properly"
        return f"its process was killed by {signal.Signals(-status).name}" if status < 0 else f"its process ended with status {status}"


class IsolatedBackend:
    """One child with one model; runs of several threads wait for one another."""

    def __init__(self, folder: Path, signature: Signature, threads: int, options: Options = DEFAULT) -> None:
        """Starts the child and waits until it has loaded; it is bound to `options.cores`. Raises LoadError."""
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._child = _Child(threads)
        except OSError as error:
            raise LoadError(f"no process for the model: {error}") from error
        order = {
            "folder": str(folder.resolve()),
            "signature": signature.model_dump(mode="json"),
            "threads": threads,
            "options": asdict(options),
        }
        try:
            self.name: str = self._loaded(order)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._child.pid

    def _loaded(self, order: Header) -> str:
        stream = self._child.stream
        most_s = COMPILE_MOST_S if order["options"]["compiled"] else LOAD_MOST_S
        stream.settimeout(most_s)
        try:
            send(stream, order)
            answer, _ = receive(stream)
        except TimeoutError:
            raise LoadError(f"loading took longer than {most_s:g} s") from None
        except (OSError, BrokenFrame) as error:
            raise LoadError(f"the model cannot be loaded: {self._child.how_it_ended()}") from error
        if "fault" in answer:
            raise LoadError(answer["fault"])
        stream.settimeout(None)  # who calls `run` knows how long it may take, and closes the backend then
        return str(answer["name"])

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Raises RunError, and BackendDied when the child is gone, or is closed meanwhile."""
        with self._lock:
            if self._closed:
                raise RunError("the model is closed")
            try:
                send(self._child.stream, {"outputs": list(outputs)}, inputs)
                answer, arrays = receive(self._child.stream)
            except ValueError as error:
                raise RunError(str(error)) from error
            except (OSError, BrokenFrame) as error:
                raise BackendDied(self._child.how_it_ended()) from error
        if "fault" in answer:
            raise RunError(answer["fault"])
        return arrays

    def when_dead(self, tell: Callable[[], None]) -> None:
        """Calls `tell` once, from another thread, when the child ends without having been closed; at once when it has ended."""
        self._child.when_dead(tell)

    def close(self) -> None:
        """Kills the child, also in the middle of a run, and waits until it is gone."""
        self._closed = True
        self._child.kill()
        if self._lock.acquire(timeout=KILL_MOST_S):  # a run that was under way has seen the end of its stream
            try:
                self._child.close()
            finally:
                self._lock.release()
