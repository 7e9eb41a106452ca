"""glibc's malloc as a server needs it."""

import ctypes
import sys
from typing import Final

# <malloc.h>
_M_ARENA_MAX: Final = -8


def share_one_arena() -> None:
    """Let all threads of this process allocate from one arena, where malloc is glibc's.

    By default each thread has an arena of its own. Such an arena gives the memory of an image back
    to the system after each request, and faults it in again: 10 ms for an image of 1024 pixels. It
    keeps what other threads have not freed yet, so the memory of a server grows with its threads.
    The effect lasts for the life of the process, on arenas that no thread has yet.
    """
    if sys.platform != "linux":
        return
    # musl has no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
