"""Signals of a command as exceptions, so that it cleans up. Standard library only."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

LONGEST_IMPORT = 20.0  # seconds that a signal waits for an import; PyTorch takes 5
SECONDS_BETWEEN_TRIES = 0.02

SignalHandler = Callable[[int, FrameType | None], object]


class Terminated(BaseException):
    """SIGTERM has come. Not an Exception, so that nothing but cleaning up stops it."""


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Let SIGTERM unwind the stack as SIGINT does, so that temporary folders are removed.

    A signal that the process was started to ignore stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = {}
    for number, handler in (
        (signal.SIGTERM, terminate),
        (signal.SIGINT, signal.default_int_handler),
    ):
        if signal.getsignal(number) == signal.SIG_DFL:
            before[number] = signal.signal(number, _after_imports(handler))
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _after_imports(handler: SignalHandler) -> SignalHandler:
    """Return a handler that waits until no module is being imported.

    An exception in the middle of an import is lost in Python's own callbacks there, or meets native
    modules that are half initialised and end the process. An import that hangs is left in the end.
    """
    first: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        first = now if first is None else first
        if _is_importing(frame) and now - first < LONGEST_IMPORT and os.name == "posix":
            send = partial(signal.pthread_kill, threading.get_ident(), number)
            again = threading.Timer(SECONDS_BETWEEN_TRIES, send)
            again.daemon = True
            again.start()
            return
        first = None  # a chat goes on after Ctrl-C
        handler(number, frame)

    return handle


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
