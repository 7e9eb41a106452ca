"""How a long job reports its progress."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, the number of things done, and the number of all things."""


def no_progress(stage: str, done_bytes: int, total_bytes: int) -> None:
    """Report nothing."""
