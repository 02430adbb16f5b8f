"""`python -m services.backends.isolated_child SOCKET LIFELINE`: the child's side of `isolated`, two inherited descriptors.

Loads one model, as its first frame says, and answers runs until its parent closes the socket.
"""

import fcntl
import os
import select
import signal
import socket
import sys
from pathlib import Path

import structlog

from services.backends import Backend, BackendError, Options, load
from services.backends.frames import BrokenFrame, Header, receive, send
from services.repository.manifest import Signature

_F_SETSIG = 10  # fcntl.h; Python does not name it


def die_with(lifeline: int) -> None:
    """Has the kernel kill this process when the pipe's other end is closed, that is, when the parent is gone.

    Neither a native call that keeps the interpreter nor a stopped process can put it off. PR_SET_PDEATHSIG was rejected: it obeys
    the thread that started the child, and threads of a service end while it goes on.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # closed before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)


def serve(stream: socket.socket) -> None:
    """Answers one frame for each frame. Raises BrokenFrame when the parent is gone."""
    order, _ = receive(stream)
    if order["options"]["cores"]:
        os.sched_setaffinity(0, order["options"]["cores"])  # before the engine starts threads: they inherit it
    try:
        backend = _load(order)
    except BackendError as error:
        send(stream, {"fault": str(error)})
        return
    send(stream, {"name": backend.name})
    while True:
        _answer(stream, backend)


def _load(order: Header) -> Backend:
    signature = Signature.model_validate(order["signature"])
    options = Options(**{**order["options"], "cores": tuple(order["options"]["cores"])})
    return load(Path(order["folder"]), signature, order["threads"], 1, options)


def _answer(stream: socket.socket, backend: Backend) -> None:
    order, inputs = receive(stream)
    try:
        answers = backend.run(inputs, order["outputs"])
    except BackendError as error:
        send(stream, {"fault": str(error)})
    except Exception as error:  # a bug in a backend fails its run, not the child
        send(stream, {"fault": f"{type(error).__name__}: {error}"})
    else:
        send(stream, {}, answers)


def _configure_logs() -> None:
    """On the parent's standard error, a JSON object a line, as the parent's own."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def main() -> None:
    """Ends when the parent does."""
    die_with(int(sys.argv[2]))
    _configure_logs()
    with socket.socket(fileno=int(sys.argv[1])) as stream:
        try:
            serve(stream)
        except (BrokenFrame, ConnectionError):
            return


if __name__ == "__main__":
    main()
