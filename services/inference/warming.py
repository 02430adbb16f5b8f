"""Runs before a version is served: they page its weights in, and tell how long batches take and how many rows it answers."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from services.backends import Backend
from services.backends.samples import sample
from services.inference.service_time import ServiceTime
from services.repository.manifest import Signature

# (rows, tokens) run before a version is ready.
WARM_UP = ((1, 8), (1, 32), (8, 16), (8, 32), (16, 32), (1, 16))
# What instances are compared by: little and much work for the threads of a batch.
TYPICAL = ((1, 16), (8, 16), (8, 64))


def warm_up(backend: Backend, signature: Signature) -> ServiceTime:
    """Runs typical batches, each twice, and learns from the second. Raises RunError."""
    service_time = ServiceTime()
    outputs = [spec.name for spec in signature.outputs]
    for rows, tokens in WARM_UP:
        tokens = min(tokens, signature.max_tokens or tokens)
        batch = sample(signature, rows, tokens)
        backend.run(batch, outputs)
        begun = time.monotonic()
        backend.run(batch, outputs)
        service_time.learn(rows, tokens if signature.task.takes_text else 1, time.monotonic() - begun)
    return service_time


def rows_per_second(
    backends: Sequence[Backend], signature: Signature, seconds: float, clock: Callable[[], float] = time.monotonic
) -> float:
    """What the backends answer together, each in a thread of its own; each ends its round of batches, so it may take longer.

    Raises RunError.
    """
    outputs = [spec.name for spec in signature.outputs]
    batches = [(rows, sample(signature, rows, tokens)) for rows, tokens in TYPICAL]
    begun = clock()

    def rows_until_the_end(backend: Backend) -> int:
        answered = 0
        while True:
            for rows, batch in batches:
                backend.run(batch, outputs)
                answered += rows
            if clock() - begun >= seconds:
                return answered

    with ThreadPoolExecutor(len(backends)) as pool:
        answered = sum(pool.map(rows_until_the_end, backends))
    return answered / max(1e-9, clock() - begun)
