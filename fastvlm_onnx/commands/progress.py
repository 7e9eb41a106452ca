"""A bar on stderr, and how much is done in words."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click


def megabytes() -> Callable[[int, int], str]:
    """Bytes in words, with the rate of the last seconds and the time left."""
    seen: deque[tuple[float, int]] = deque()

    def words(done: int, total: int) -> str:
        now = time.monotonic()
        if seen and done < seen[-1][1]:  # another stage
            seen.clear()
        seen.append((now, done))
        while seen[0][0] < now - 10:
            seen.popleft()
        text = f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
        seconds, rate_bytes = now - seen[0][0], done - seen[0][1]
        if seconds < 1 or not rate_bytes:
            return text
        minutes, left = divmod(round((total - done) * seconds / rate_bytes), 60)
        return f"{text}, {rate_bytes / seconds / 1e6:,.1f} MB/s, {minutes}:{left:02} left"

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
