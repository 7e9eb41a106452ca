"""A bar on stderr, and how much is done in words."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click

Words = Callable[[int, int], str]
"""What is done, and all there is, in words."""


def megabytes() -> Words:
    """Bytes in words, with the rate of the last seconds and the time left."""
    return _with_rate(
        lambda done, total: f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB",
        lambda rate: f"{rate / 1e6:,.1f} MB/s",
        window_seconds=10,
    )


def count_with_rate() -> Words:
    """A number of things, with the rate of the last minute and the time left."""
    return _with_rate(count, lambda rate: f"{rate:.2f} a second", window_seconds=60)


def _with_rate(amount: Words, rate: Callable[[float], str], window_seconds: float) -> Words:
    seen: deque[tuple[float, int]] = deque()

    def words(done: int, total: int) -> str:
        now = time.monotonic()
        if seen and done < seen[-1][1]:  # another stage
            seen.clear()
        seen.append((now, done))
        while seen[0][0] < now - window_seconds:
            seen.popleft()
        text = amount(done, total)
        seconds, newly = now - seen[0][0], done - seen[0][1]
        if seconds < 1 or not newly:
            return text
        minutes, left = divmod(round((total - done) * seconds / newly), 60)
        return f"{text}, {rate(newly / seconds)}, {minutes}:{left:02} left"

    return words


def count(done: int, total: int) -> str:
    return f"{done} of {total}"


@contextmanager
def progress_bar(
    label: str, amount: Callable[[int, int], str]
) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the stage's name and how much is done, on stderr if that is a terminal."""
    shown = ""
    bar: Any = None
    with ExitStack() as stack:

        def update(stage: str, done: int, total: int) -> None:
            nonlocal shown, bar
            shown = f"{stage}, {amount(done, total)}"
            if bar and (bar.length != total or done < bar.pos):  # another stage, on its own line
                stack.close()
                bar = None
            # Not before there is something to show: a refused export prints one line.
            bar = bar or stack.enter_context(
                click.progressbar(
                    length=total,
                    label=label,
                    file=sys.stderr,
                    item_show_func=lambda _: shown,
                    show_eta=False,
                    width=0,  # what the terminal has left
                    hidden=not sys.stderr.isatty(),
                )
            )
            bar.update(done - bar.pos, current_item=stage)

        yield update
