"""How a long job tells how far it is, in bytes."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, bytes done so far, and bytes in all."""


def no_progress(stage: str, done_bytes: int, total_bytes: int) -> None:
    """The default: nobody is told."""
