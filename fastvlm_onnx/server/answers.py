"""The running answers of one request, merged, with their end where the client goes away."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from fastvlm_onnx.runtime.answering.results import Generation, Piece
from fastvlm_onnx.runtime.serving.running_answer import RunningAnswer
from fastvlm_onnx.server.errors import unavailable
from fastvlm_onnx.server.metrics import Metrics

_T = TypeVar("_T")


class Answers:
    """The pieces of all answers of one request as they come.

    Attributes:
        generations: the answers that have ended, by index.
    """

    def __init__(self, running: Sequence[RunningAnswer], metrics: Metrics) -> None:
        self.generations: dict[int, Generation] = {}
        self._running, self._metrics = running, metrics
        self._events: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        self._tasks = [
            asyncio.create_task(self._forward(index, answer))
            for index, answer in enumerate(running)
        ]

    @property
    def have_ended(self) -> bool:
        """Every answer has ended, and its last piece was taken."""
        return len(self.generations) == len(self._running)

    def in_order(self) -> list[Generation]:
        """The answers, which all have ended."""
        return [self.generations[index] for index in range(len(self._running))]

    async def next(self, seconds: float | None = None) -> tuple[int, Piece] | None:
        """The next piece with the index of its answer; None where no piece came in time.

        Raises:
            Exception: the error that ended an answer.
        """
        try:
            async with asyncio.timeout(seconds):
                index, event = await self._events.get()
        except TimeoutError:
            return None
        if isinstance(event, Exception):
            raise event
        if event.generation is not None:
            self._end(index, event.generation)
        return index, event

    def _end(self, index: int, generation: Generation) -> None:
        if generation.finish_reason == "cancelled":
            # A client that cancels reads no more, so the server is stopping.
            raise unavailable("the server stopped before the answer had ended; ask again.")
        if generation.finish_reason == "time" and not generation.token_ids:
            raise unavailable("the answer's time ended in the queue; ask again later.")
        self.generations[index] = generation
        self._metrics.count(generation)

    async def all_ended(self) -> None:
        """Take all pieces.

        Raises:
            Exception: the error that ended an answer.
        """
        while not self.have_ended:
            await self.next()

    def close(self) -> None:
        """Cancel the answers that run."""
        for answer in self._running:
            answer.cancel()
        for task in self._tasks:
            task.cancel()

    async def _forward(self, index: int, answer: RunningAnswer) -> None:
        try:
            async for piece in answer:
                self._events.put_nowait((index, piece))
        except Exception as error:
            self._events.put_nowait((index, error))


async def until_disconnect(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which is cancelled where the client goes away.

    Raises:
        ClientDisconnect: the client went away.
    """
    working = asyncio.create_task(work)
    tasks = (working, asyncio.create_task(_disconnected(request)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
