"""The requests of one stream: run side by side, answered in their order, bounded in how many are under way."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Stream(Generic[Q, A]):
    """`answer` is run for each request, for at most `ahead` at once. Made and used on one event loop, iterated once."""

    def __init__(self, requests: AsyncIterator[Q], answer: Callable[[Q], Awaitable[A]], *, ahead: int, idle_s: float) -> None:
        self._requests = requests
        self._answer = answer
        self._idle_s = idle_s
        self._slots = asyncio.Semaphore(ahead)
        self._begun: asyncio.Queue[asyncio.Future[A] | None] = asyncio.Queue()
        self._reader: asyncio.Future[None] | None = None
        self.stopped = False

    def stop(self) -> None:
        """No further request is taken; those taken are answered."""
        self.stopped = True
        if self._reader is not None:
            self._reader.cancel()

    async def answers(self) -> AsyncGenerator[A, None]:
        """Each request's answer, in the order of the requests.

        Raises:
            TimeoutError: no request came for `idle_s` seconds; those that came are answered.
            Exception: what `answer` raised for a request; the ones before it are answered.
        """
        self._reader = asyncio.ensure_future(self._read())
        answer: asyncio.Future[A] | None = None
        try:
            while (answer := await self._begun.get()) is not None:
                yield await answer
                self._slots.release()  # only now: a caller that does not read its answers is not read from either
            if not self.stopped:
                await self._reader
        finally:
            await self._end(answer)

    async def _read(self) -> None:
        try:
            while not self.stopped:
                await self._slots.acquire()
                async with asyncio.timeout(self._idle_s):
                    request = await anext(self._requests, None)
                if request is None:
                    return
                self._begun.put_nowait(asyncio.ensure_future(self._answer(request)))
        except TimeoutError:
            raise TimeoutError(f"no request came for {self._idle_s:g} s") from None
        finally:
            self._begun.put_nowait(None)

    async def _end(self, answer: asyncio.Future[A] | None) -> None:
        """What still runs is cancelled, so that nothing outlives the stream."""
        left: list[asyncio.Future[A] | asyncio.Future[None] | None] = [answer, self._reader]
        while not self._begun.empty():
            left.append(self._begun.get_nowait())
        tasks = [task for task in left if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
