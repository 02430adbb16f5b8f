"""Uploads and downloads that go on where they broke."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import grpc

UPLOAD_TIMEOUT_S = 1800.0
ATTEMPTS = 5
Progress = Callable[[int, int], None]  # bytes done, bytes in all
T = TypeVar("T")


def resuming(attempt: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """`attempt()`, made again while the server is UNAVAILABLE or the connection breaks. Raises grpc.RpcError."""
    for number in range(attempts):
        try:
            return attempt()
        except grpc.RpcError as error:
            if not _goes_on(error, number, attempts):
                raise
            time.sleep(_pause_s(number))
    raise ValueError(f"attempts must be at least 1, not {attempts}")


async def resuming_async(attempt: Callable[[], Awaitable[T]], attempts: int = ATTEMPTS) -> T:
    """`resuming` for asyncio."""
    for number in range(attempts):
        try:
            return await attempt()
        except grpc.RpcError as error:
            if not _goes_on(error, number, attempts):
                raise
            await asyncio.sleep(_pause_s(number))
    raise ValueError(f"attempts must be at least 1, not {attempts}")


def refuse_all_but_unknown(error: grpc.RpcError) -> None:
    """For who asks what has arrived of an upload: NOT_FOUND means nothing, anything else is raised again."""
    if error.code() is not grpc.StatusCode.NOT_FOUND:
        raise error


async def off_loop(items: Iterator[T]) -> AsyncIterator[T]:
    """An iterator's items, each made in a thread: reading a file must not hold up the event loop."""
    end = object()
    while (item := await asyncio.to_thread(next, items, end)) is not end:
        yield item  # type: ignore[misc]


def _goes_on(error: grpc.RpcError, number: int, attempts: int) -> bool:
    return number < attempts - 1 and (error.code() is grpc.StatusCode.UNAVAILABLE or _broken_while_writing(error))


def _broken_while_writing(error: grpc.RpcError) -> bool:
    """grpc.aio tells so, and not with UNAVAILABLE, where the connection breaks just as a message is handed to it."""
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"


def _pause_s(number: int) -> float:
    return float(0.2 * 2**number)
