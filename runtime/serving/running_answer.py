"""An answer that a scheduler gives, as its caller sees it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from fastvlm_onnx.arguments import checks_arguments
from fastvlm_onnx.runtime.answering.results import Generation, Piece


class RunningAnswer:
    """An answer that waits, is running, or has ended. Any number of threads may read it.

    Iterate over it for its pieces, with `for` in a thread or with `async for` in an event loop.
    Each iteration begins with the first piece. The last piece carries the whole answer.
    """

    def __init__(self, wake_scheduler: Callable[[], None]) -> None:
        """Begin an answer without pieces.

        Args:
            wake_scheduler: makes the scheduler look at `is_cancelled`.
        """
        self._wake_scheduler = wake_scheduler
        self._changed = threading.Condition()
        self._pieces: list[Piece] = []
        self._generation: Generation | None = None
        self._error: Exception | None = None
        self._listeners: list[Callable[[], None]] = []
        self._is_cancelled = False

    @property
    def is_cancelled(self) -> bool:
        """The caller cancelled the answer."""
        return self._is_cancelled

    @property
    def has_ended(self) -> bool:
        """The answer has a result or an error."""
        return self._generation is not None or self._error is not None

    def cancel(self) -> None:
        """End the answer, and free its row, before its next token.

        An answer that has ended stays as it is.
        """
        self._is_cancelled = True
        self._wake_scheduler()

    @checks_arguments
    def result(self, timeout: float | None = None) -> Generation:
        """Wait for the whole answer.

        Args:
            timeout: seconds to wait; no limit when None.

        Raises:
            TimeoutError: the answer has not ended in time; it goes on.
            FastVLMError: the answer failed.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.has_ended, timeout):
                raise TimeoutError(f"the answer has not ended within {timeout} seconds.")
        if self._error is not None:
            raise self._error
        assert self._generation is not None
        return self._generation

    def __iter__(self) -> Iterator[Piece]:
        """Pieces as they come.

        Raises:
            FastVLMError: the answer failed; pieces before the failure come first.
        """
        taken = 0
        while True:
            with self._changed:
                while len(self._pieces) == taken and not self.has_ended:
                    self._changed.wait()
                new = self._pieces[taken:]
            taken += len(new)
            yield from new
            if not new or new[-1].generation is not None:
                break
        if self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces as they come; see `__iter__`. No thread is taken while it waits."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        with self._changed:
            self._listeners.append(wake)
        taken = 0
        try:
            while True:
                changed.clear()
                new, has_ended = self._pieces[taken:], self.has_ended
                taken += len(new)
                for piece in new:
                    yield piece
                if not new and has_ended:
                    break
                if not new:
                    await changed.wait()
        finally:
            with self._changed:
                if wake in self._listeners:
                    self._listeners.remove(wake)
        if self._error is not None:
            raise self._error

    # --- the scheduler's side ----------------------------------------------------------------

    def add_piece(self, piece: Piece) -> None:
        """Hand out a piece; the last piece ends the answer."""
        with self._changed:
            self._pieces.append(piece)
            self._generation = piece.generation
            self._notify()

    def fail(self, error: Exception) -> None:
        """End the answer with an error."""
        with self._changed:
            self._error = error
            self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        for wake in list(self._listeners):
            try:
                wake()
            except RuntimeError:  # the event loop is closed, so nobody waits there
                self._listeners.remove(wake)
